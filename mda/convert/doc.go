// Package convert derives from a message the form in which a mailbox wants it:
// text in UTF-8, text instead of HTML, or nothing but seven bits.
//
//	derived, err := (&convert.Options{UTF8: true, Text: true}).Convert(ctx, msg)
//
// The message itself is never changed. What comes out is another message, made
// for readers that cannot, or should not, show the first: a terminal, a speech
// synthesiser, a program, a POP3 client of 1995. An mda.Agent with a policy
// ([ByMailbox]) files it into the mailbox, and the original, octet for octet,
// into another one, before it.
//
// # What is done
//
// UTF8 turns the charset of text parts into UTF-8, and so it does with the encoded words of
// header fields (RFC 2047) and with parameters (RFC 2231). Text that is
// unlabelled, or labelled us-ascii, and valid as UTF-8 gets its label. Octets that the
// declared charset does not have become U+FFFD. UTF-7 and charsets that are not known are left as
// they are, and so is text labelled UTF-8 that is none. Attachments are files, and not
// touched. A charset that an HTML document names inside of itself stays there; the
// label of the part overrules it.
//
// Text puts a text view in the place of HTML, or before it (KeepHTML); see
// below. In a multipart/alternative with a plain text that is not blank, that text is the
// view: it is what its author wrote for such readers.
//
// SevenBit encodes what has octets over 127, NUL, lines over 998 octets or line ends
// that are none: parts with quoted-printable or base64, header fields with encoded words and RFC 2231
// parameters. Internationalised addresses (RFC 6532) become what RFC 6857 makes of them: a domain its
// A-labels; a mailbox whose local part has no ASCII form an empty group with the address as
// its name, which can be read and not be answered; a structured field with no other way
// out the field Downgraded-NAME. Each of these is told in [Result.Notes].
//
// # What is never touched
//
// What a signature covers or a key closes: multipart/signed, multipart/encrypted, application/pkcs7-mime, and
// everything inside of them, messages included; and text with PGP armour, as far as charsets are concerned. They
// are copied octet for octet, so their signatures verify in the derived message as
// well, and where that leaves octets over 127 behind, [Result.EightBit] says so. A message that is
// attached (message/rfc822) without a signature around it is converted like the
// one that it is in.
//
// DKIM and ARC signatures cover the whole message and cannot survive. A derived message has
// no DKIM-Signature and no ARC fields, because there they would only
// be evidence of a forgery that was none; the original has them, and they verify there.
// Authentication-Results stay: they tell what was found when the original
// arrived. At the end of its header there is the field
//
//	X-Mailspine-Converted: utf-8, text, 7bit
//
// with what was done. Anybody can write such a field; it is for people.
//
// # The text view
//
// It is text, and nothing in it is loaded, run or submitted. Scripts, styles, comments, forms' fields and
// embedded objects are left out; images are their alternative text. The
// target of each link stands behind its text, in angle brackets, as a browser would
// understand it: without user name, with the host in its A-label form, so that a
// reader sees where it leads. A text that could be taken for such a mark is set apart from
// its bracket. Links of other kinds than http, https, ftp, mailto and tel are named and left out.
// Headings, lists, quotations, tables and preformatted text keep their shape.
//
// Text that a browser does not show is left out: that of elements with the attribute hidden, or
// whose own style attribute has display:none, visibility:hidden, opacity:0, a font-size of at most 1px, a
// size of zero with overflow:hidden, or a place far outside. Style sheets and colours are not
// evaluated: what only they hide is shown. Invisible characters and those that change the
// direction of text are taken out.
//
// # Bounds
//
// A message is read as a stream, once to take it apart, where need be to look at its text, and once to
// write, and what is made of it goes to a Stager. Memory does not depend on its size: header blocks take up to 1 MiB,
// the tree up to [MaxParts] parts, and one token of HTML up to 64 KiB. Larger tags and comments are
// passed over. What passes the bounds, and what is no well-formed multipart, comes out
// unchanged, with the reason in [Result.Problem].
//
// The same message gives the same octets, on every system and at any time, and a derived
// message converted again is not changed again.
//
// Not here: pictures, sound, documents of office programs, RTF, TNEF, and
// format=flowed; conversion of text to HTML; BINARYMIME for those who want it.
package convert
