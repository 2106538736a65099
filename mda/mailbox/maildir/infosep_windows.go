package maildir

// infoSep stands between the unique part of a file name and the flags. A colon
// cannot be in a file name here.
const infoSep = ';'
