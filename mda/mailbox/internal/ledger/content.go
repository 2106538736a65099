package ledger

import (
	"context"
	"fmt"
	"io"

	"github.com/mailspine/mailspine"
)

// Write writes a message to w, octet for octet. A message that is not as long as it says
// is an error, and so is the end of ctx, which is looked at between pieces.
func Write(ctx context.Context, w io.Writer, msg mailspine.Content) error {
	r, err := msg.Open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	want := msg.Size()
	buf := make([]byte, 64<<10)
	var got int64
	for { // bounded by want: what has more octets is an error
		if err := ctx.Err(); err != nil {
			return err
		}
		n, rerr := r.Read(buf)
		if got += int64(n); got > want {
			return fmt.Errorf("mailbox: message has more than its %d octets", want)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		switch {
		case rerr == io.EOF && got < want:
			return fmt.Errorf("mailbox: message ends after %d of %d octets: %w", got, want, io.ErrUnexpectedEOF)
		case rerr == io.EOF:
			return nil
		case rerr != nil:
			return rerr
		}
	}
}
