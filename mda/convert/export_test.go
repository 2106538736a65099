package convert

import (
	"bufio"
	"io"
)

// newQP returns the writer of quoted-printable over w.
func newQP(w io.Writer, nl string) io.WriteCloser {
	b := bufio.NewWriter(w)
	return flushing{encoder(quotedPrintable, nl, b), b}
}

type flushing struct {
	io.WriteCloser
	b *bufio.Writer
}

func (f flushing) Close() error {
	err := f.WriteCloser.Close()
	f.b.Flush()
	return err
}
