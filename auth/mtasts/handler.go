package mtasts

import (
	"net"
	"net/http"
	"strconv"
	"strings"
)

// A Handler serves policies, as the policy host of one or many domains: for "mta-sts.DOMAIN" in the Host field it answers
// /.well-known/mta-sts.txt with the policy of DOMAIN, everything else with 404. It needs to be reached over HTTPS, at port 443 and with a certificate
// for that name. It does not redirect, since senders do not follow (RFC 8461 section 3.3).
//
// It is safe for concurrent use as long as nobody changes its map. To publish another policy, put another Handler in its place;
// where both are seen at the same time, senders may see either. Change the TXT record (see [Record]) when all
// policy hosts have the new policy, not before.
type Handler struct {
	// Policies are by domain, in lower case with A-labels. A policy that is not valid (Policy.Validate) is answered like one that is missing. Empty:
	// everything is 404.
	Policies map[string]Policy
}

var _ http.Handler = (*Handler)(nil)

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	p, ok := h.policy(r.Host)
	if !ok || r.URL.Path != WellKnownPath {
		http.Error(w, "no policy here", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		http.Error(w, "GET or HEAD", http.StatusMethodNotAllowed)
		return
	}
	text := p.String()
	header.Set("Content-Type", "text/plain; charset=utf-8")
	header.Set("Content-Length", strconv.Itoa(len(text)))
	// Senders keep nothing but the policy itself; a proxy in front of us is not to keep an old one.
	header.Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		// The client may have gone; there is nobody to tell.
		_, _ = w.Write([]byte(text))
	}
}

// policy finds the policy for a Host field.
func (h *Handler) policy(host string) (Policy, bool) {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	domain, ok := strings.CutPrefix(host, hostPrefix)
	if !ok {
		return Policy{}, false
	}
	p, ok := h.Policies[domain]
	return p, ok && p.Validate() == nil
}
