package queue

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// String tells kind, key and policy: "quota login/ann (500 in 24h0m0s)".
func (l Limit) String() string {
	switch {
	case l.Kind == Slots:
		return fmt.Sprintf("%s (%d)", l.rule(), l.Max)
	case l.Burst > 0 && l.Burst != l.Max:
		return fmt.Sprintf("%s (%d in %v, %d at once)", l.rule(), l.Max, l.Per, l.Burst)
	}
	return fmt.Sprintf("%s (%d in %v)", l.rule(), l.Max, l.Per)
}

// rule names what is counted. A key may be made of what a client said: control characters do not reach a log raw.
func (l Limit) rule() string {
	if !utf8.ValidString(l.Key) || strings.ContainsFunc(l.Key, unicode.IsControl) {
		return l.Kind.String() + " " + strconv.Quote(l.Key)
	}
	return l.Kind.String() + " " + l.Key
}

// Normal returns the limit with its defaults filled in, as drivers want it, or an error that matches ErrBadLimit and
// names the field. The N of a Limit that takes the request's N stays 0.
func (l Limit) Normal() (Limit, error) {
	bad := func(field, format string, args ...any) (Limit, error) {
		return l, fmt.Errorf("%w: %s of %.300q: %s", ErrBadLimit, field, l.Key, fmt.Sprintf(format, args...))
	}
	if l.Kind < Slots || l.Kind > Quota {
		return bad("Kind", "%d is none", l.Kind)
	}
	if n := len(l.Key); n < 1 || n > MaxLimitKey {
		return bad("Key", "it has %d octets, not 1 to %d", n, MaxLimitKey)
	}
	if l.Max < 0 || l.Max > MaxLimit {
		return bad("Max", "%d is not from 0 to %d", l.Max, int64(MaxLimit))
	}
	if l.N < 0 || l.N > MaxLimit {
		return bad("N", "%d is not from 0 to %d", l.N, int64(MaxLimit))
	}
	if l.Kind == Slots {
		if l.Per != 0 {
			return bad("Per", "slots have none")
		}
		l.N = max(l.N, 1)
	} else if l.Per < time.Millisecond || l.Per > MaxPer {
		return bad("Per", "%v is not from a millisecond to %v", l.Per, MaxPer)
	}
	if l.Burst < 0 || l.Burst > MaxLimit {
		return bad("Burst", "%d is not from 0 to %d", l.Burst, int64(MaxLimit))
	}
	if l.Kind == Rate {
		if l.Burst == 0 {
			l.Burst = l.Max
		}
	} else if l.Burst != 0 {
		return bad("Burst", "only a rate has one")
	}
	if l.Offset != 0 && (l.Kind != Quota || l.Offset <= -l.Per || l.Offset >= l.Per) {
		return bad("Offset", "only a quota has one, and it is shorter than its Per")
	}
	return l, nil
}

// Normal returns the request with its defaults filled in, as drivers want it, or an error that matches ErrBadLimit.
// It shares nothing with r.
func (r TakeRequest) Normal() (TakeRequest, error) {
	if len(r.Limits) < 1 || len(r.Limits) > MaxLimits {
		return r, fmt.Errorf("%w: there are %d limits, not 1 to %d", ErrBadLimit, len(r.Limits), MaxLimits)
	}
	r.Limits = slices.Clone(r.Limits)
	for i, l := range r.Limits {
		l, err := l.Normal()
		if err != nil {
			return r, err
		}
		r.Limits[i] = l
		if l.Kind == Slots && r.TTL < 0 {
			return r, fmt.Errorf("%w: slots without a permit would never come back", ErrBadLimit)
		}
		for _, m := range r.Limits[:i] { // fewer than MaxLimits
			if l.Kind == m.Kind && l.Key == m.Key && l.Per == m.Per {
				return r, fmt.Errorf("%w: two of %v %.300q", ErrBadLimit, l.Kind, l.Key)
			}
		}
	}
	if r.N == 0 {
		r.N = 1
	}
	if r.Min == 0 {
		r.Min = r.N
	}
	if r.N < 0 || r.N > MaxLimit || r.Min < 0 || r.Min > r.N {
		return r, fmt.Errorf("%w: N is %d, Min %d", ErrBadLimit, r.N, r.Min)
	}
	if r.TTL == 0 {
		r.TTL = DefaultPermitTTL
	}
	r.TTL = min(r.TTL, MaxPermitTTL)
	return r, nil
}
