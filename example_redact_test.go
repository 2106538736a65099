package mailspine_test

import (
	"log/slog"
	"os"

	"github.com/mailspine/mailspine"
)

// How do addresses stay out of the logs?
func ExampleRedactAddresses() {
	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{} // so that the output is the same each time
			}
			return mailspine.RedactAddresses(groups, a)
		},
	}))
	log.Info("queued", "from", "joe@example.org", "recipients", 2)
	// Output:
	// level=INFO msg=queued from=***@example.org recipients=2
}
