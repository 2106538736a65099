package queuetest

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// The envelope by which stores are tested has no zero field: a field that is
// added to Envelope must be added there, or no store is tested with it.
func TestFullEnvelope(t *testing.T) {
	env := fullEnvelope()
	if err := env.Validate(); err != nil {
		t.Fatal(err)
	}
	var walk func(name string, v reflect.Value)
	walk = func(name string, v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			if v.IsNil() {
				t.Errorf("%s is nil", name)
				return
			}
			walk(name, v.Elem())
		case reflect.Slice:
			if v.Len() == 0 {
				t.Errorf("%s is empty", name)
			}
			for i := range v.Len() {
				walk(fmt.Sprintf("%s[%d]", name, i), v.Index(i))
			}
		case reflect.Struct:
			if v.IsZero() {
				t.Errorf("%s is zero", name)
			}
			for i := range v.NumField() {
				if f := v.Type().Field(i); f.IsExported() {
					walk(name+"."+f.Name, v.Field(i))
				}
			}
		default:
			if v.IsZero() {
				t.Errorf("%s is zero", name)
			}
		}
	}
	walk("Envelope", reflect.ValueOf(env))
}

func TestCases(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range cases() {
		if seen[c.name] || c.name == "" || !strings.HasSuffix(c.rule, ".") {
			t.Errorf("case %q: it has a name of its own and a rule that is a sentence: %q", c.name, c.rule)
		}
		seen[c.name] = true
	}
	if len(seen) < 100 {
		t.Errorf("%d cases", len(seen))
	}
}
