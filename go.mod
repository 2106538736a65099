module github.com/mailspine/mailspine

go 1.25.0

require (
	github.com/emersion/go-message v0.18.2
	github.com/emersion/go-msgauth v0.7.0
	github.com/emersion/go-sasl v0.0.0-20241020182733-b788ff22d5a6
	github.com/emersion/go-smtp v0.25.1
	github.com/google/go-cmp v0.7.0
	github.com/miekg/dns v1.1.73
	golang.org/x/crypto v0.55.0
	golang.org/x/net v0.58.0
	golang.org/x/sys v0.47.0
	golang.org/x/text v0.41.0
	pgregory.net/rapid v1.3.0
)

require (
	github.com/emersion/go-imap/v2 v2.0.0-beta.8
	github.com/pires/go-proxyproto v0.15.0
	github.com/xdg-go/scram v1.4.0
)

require github.com/xdg-go/stringprep v1.0.4 // indirect
