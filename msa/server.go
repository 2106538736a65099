package msa

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/smtpd"
)

// A Server is a submission server. Its fields must not change after the first
// Serve. TLSConfig, Auth and Next are needed; every other zero is a default.
type Server struct {
	// Hostname is the name in the greeting, in Received fields and Message-IDs;
	// "": os.Hostname, or "localhost" if that fails.
	Hostname string
	// TLSConfig has the certificate. nil: Serve and ServeTLS fail, since AUTH
	// needs TLS.
	TLSConfig *tls.Config
	// Auth says who may log in. nil: Serve and ServeTLS fail.
	Auth mailspine.Authenticator
	// Senders says which addresses a login may send as; nil: [OwnAddresses].
	Senders Senders
	// Next takes the messages: a queue, behind a signer. nil: Serve and ServeTLS
	// fail. Messages are staged where it wants them (see mailspine.Stager).
	Next mailspine.Deliverer
	// Undelivered takes a message for the recipients for whom Next did not take
	// it, when it took it for others: the client has one reply only, 250, so somebody else has to see to
	// the rest. It finds the reasons with [mailspine.FailuresFrom]. nil is right when Next takes all
	// recipients or none, as a queue does. If it is nil and the results are mixed
	// nevertheless, the client is told the worst of them, so that nothing is
	// lost, though a recipient may get the message twice; that is logged as an
	// error, and from then on the server accepts one recipient for each message (452 4.5.3), so that it
	// does not happen again.
	Undelivered mailspine.Deliverer
	// NoRequireTLS says that REQUIRETLS (RFC 8689) is not offered to clients under TLS, and is refused with 555 5.5.4: for a Next behind which
	// there is somebody who passes messages on without a look at Envelope.RequireTLS. A queue.Queue, a mta.Relay and a mta.Smarthost
	// do look.
	NoRequireTLS bool
	// Limits; the zero value: the defaults.
	Limits Limits
	// AuthDelay is how long the reply to the first failed login of a connection
	// waits; it doubles with each further one, up to 8 s. 0: 1 s; negative: none.
	AuthDelay time.Duration
	// Logger; nil: slog.Default().
	Logger *slog.Logger
	// Trace; nil: none.
	Trace *Trace
	// Now gives the time for Date and Received; nil: time.Now.
	Now func() time.Time

	once   sync.Once
	engine *smtpd.Server
	door   *smtpd.Door
}

func (s *Server) init() {
	s.once.Do(func() {
		s.engine = &smtpd.Server{
			Hostname: s.Hostname, TLSConfig: s.TLSConfig, Limits: smtpd.Limits(s.Limits), Logger: s.Logger,
			Trace: (*smtpd.Trace)(s.Trace), AuthDelay: s.AuthDelay, Extensions: smtpd.Extensions{RequireTLS: !s.NoRequireTLS},
			Handler: smtpd.HandlerFunc(func(_ context.Context, c *smtpd.Conn) (smtpd.Session, error) {
				return &session{srv: s, c: c}, nil
			}),
		}
		s.door = &smtpd.Door{Next: s.Next, Undelivered: s.Undelivered, Limit: s.Limits.Deliver, Logger: s.Logger}
	})
}

func (s *Server) ready() error {
	switch {
	case s.TLSConfig == nil:
		return errors.New("msa: Server.TLSConfig is nil, and AUTH needs TLS")
	case s.Auth == nil:
		return errors.New("msa: Server.Auth is nil: nobody could log in")
	case s.Next == nil:
		return errors.New("msa: Server.Next is nil: nobody takes the messages")
	}
	s.init()
	return nil
}

// Serve accepts connections on l, whose clients say STARTTLS (port 587). It
// returns nil after Shutdown or Close, and otherwise why l failed. It closes l. Several Serves
// and ServeTLSs may run at once.
func (s *Server) Serve(l net.Listener) error {
	if err := s.ready(); err != nil {
		l.Close()
		return err
	}
	return s.engine.Serve(l)
}

// ServeTLS is Serve for implicit TLS (port 465, RFC 8314 section 3.3).
func (s *Server) ServeTLS(l net.Listener) error {
	if err := s.ready(); err != nil {
		l.Close()
		return err
	}
	return s.engine.ServeTLS(l)
}

// Shutdown stops accepting, tells idle clients 421, lets transactions that have
// begun end, and returns when every connection is gone. If ctx ends before that,
// the connections that are left are closed, and Shutdown returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.init()
	return s.engine.Shutdown(ctx)
}

// Close stops accepting, closes every connection, and waits until the deliveries under way have returned.
func (s *Server) Close() error {
	s.init()
	return s.engine.Close()
}

// Stats returns the counts.
func (s *Server) Stats() Stats {
	s.init()
	return Stats(s.engine.Stats())
}

func (s *Server) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Server) senders() Senders {
	if s.Senders != nil {
		return s.Senders
	}
	return SendersFunc(OwnAddresses)
}
