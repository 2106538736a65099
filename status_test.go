package mailspine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestStatus(t *testing.T) {
	secret := errors.New("open /var/spool/secret: broken")
	perm := Errorf(550, "5.1.1", "No such user")
	temp := Errorf(450, "4.2.1", "Mailbox busy")
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"unknown", secret, "451 4.3.0 Local error in processing"},
		{"error", perm, "550 5.1.1 No such user"},
		{"wrapped", fmt.Errorf("deliver: %w", perm), "550 5.1.1 No such user"},
		{"outermost decides", temp.WithCause(perm), "450 4.2.1 Mailbox busy"},
		{"joined", errors.Join(secret, perm), "550 5.1.1 No such user"},
		{"no enhanced code", &Error{Code: 554, Message: "no"}, "554 5.0.0 no"},
		{"class contradicts", &Error{Code: 554, Enhanced: EnhancedCode{4, 1, 1}, Message: "no"}, "554 5.0.0 no"},
		{"impossible code", &Error{Code: 250, Message: "fine"}, "451 4.3.0 Local error in processing"},
		{"zero error", &Error{}, "451 4.3.0 Local error in processing"},
		{"recipients, worst is temporary", RecipientErrors{perm, nil, temp}, "450 4.2.1 Mailbox busy"},
		{"recipients, permanent", RecipientErrors{nil, perm}, "550 5.1.1 No such user"},
		{"recipients, unknown", RecipientErrors{perm, secret}, "451 4.3.0 Local error in processing"},
		{"recipients wrapped", fmt.Errorf("x: %w", RecipientErrors{perm}), "550 5.1.1 No such user"},
		{"error around recipients", temp.WithCause(RecipientErrors{perm}), "450 4.2.1 Mailbox busy"},
		{"not now", &NotNow{Reason: "cap"}, "451 4.3.2 Not accepting this message now, try again later"},
		{"dns temporary", &DNSError{Kind: ErrDNSTemporary}, "451 4.4.3 Temporary failure of a name lookup"},
		{"dns bogus", fmt.Errorf("mx: %w", &DNSError{Kind: ErrDNSBogus}), "451 4.4.3 Temporary failure of a name lookup"},
		{"dns nxdomain is for the caller to judge", &DNSError{Kind: ErrNXDomain}, "451 4.3.0 Local error in processing"},
		{"disk full", &os.PathError{Op: "write", Path: "/secret", Err: syscall.ENOSPC}, "452 4.3.1 Insufficient system storage"},
		{"quota", fmt.Errorf("x: %w", syscall.EDQUOT), "452 4.3.1 Insufficient system storage"},
		{"deadline", context.DeadlineExceeded, "451 4.4.7 Timed out, try again later"},
		{"cancelled", fmt.Errorf("x: %w", context.Canceled), "451 4.3.2 Interrupted, try again later"},
		{"net time-out", &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, "451 4.4.2 Connection timed out"},
		{"lost", io.ErrUnexpectedEOF, "451 4.4.2 Connection lost"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := Status(c.err)
			if got := s.Reply(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if strings.Contains(s.Reply(), "secret") {
				t.Error("the cause reached the peer's text")
			}
			if s.Err == nil || s.Err.Error() != c.err.Error() {
				t.Error("the cause is lost for the log")
			}
			if again := Status(s); again.Reply() != s.Reply() {
				t.Errorf("Status of a Status is %q", again.Reply())
			}
		})
	}
	if Status(nil) != nil {
		t.Error("Status(nil) is not nil")
	}
	if RecipientErrors(make([]error, 3)).Err() != nil {
		t.Error("nothing but nil entries is an error")
	}
}

func TestEnhancedCode(t *testing.T) {
	for _, s := range []string{"5.1.1", "2.0.0", "4.7.999", "5.0.10"} {
		c, err := ParseEnhancedCode(s)
		if err != nil || c.String() != s {
			t.Errorf("%q: %v, %v", s, c, err)
		}
	}
	for _, s := range []string{"", "5", "5.1", "5.1.1.1", "3.1.1", "5.01.1", "5.1.1000", "5..1", "-5.1.1", "5.1.+1", "5.1.1 ", "٥.1.1", "55.1.1"} {
		if c, err := ParseEnhancedCode(s); err == nil {
			t.Errorf("%q is taken as %v", s, c)
		}
	}
}

func FuzzParseEnhancedCode(f *testing.F) {
	f.Add("5.1.1")
	f.Add("4.7.999")
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := ParseEnhancedCode(s); err == nil && c.String() != s {
			t.Fatalf("%q becomes %q", s, c)
		}
	})
}

func TestErrorAt(t *testing.T) {
	a, b := errors.New("a"), errors.New("b")
	re := RecipientErrors{a, nil}
	for _, c := range []struct {
		err  error
		i    int
		want error
	}{
		{nil, 0, nil}, {b, 3, b}, {re, 0, a}, {re, 1, nil}, {fmt.Errorf("w: %w", re), 0, a},
	} {
		if got := ErrorAt(c.err, c.i); got != c.want {
			t.Errorf("ErrorAt(%v, %d) = %v", c.err, c.i, got)
		}
	}
	// A Deliverer that forgot recipients must not lose them.
	if ErrorAt(RecipientErrors{nil}, 1) == nil || ErrorsFor(RecipientErrors{}, 2).Err() == nil {
		t.Error("a missing result counts as taken")
	}
	if s := Status(ErrorAt(RecipientErrors{nil}, 1)); !s.Temporary() {
		t.Error("a missing result bounces")
	}
	out := Errorf(451, "4.3.0", "all of you").WithCause(RecipientErrors{nil, nil})
	if ErrorAt(out, 1) != error(out) {
		t.Error("an *Error outside decides for all")
	}
	if got := ErrorsFor(nil, 2); got.Err() != nil || len(got) != 2 {
		t.Errorf("ErrorsFor(nil, 2) = %v", got)
	}
}
