package postgres

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"
)

const secret = "hunter2-hunter2"

// both are the two forms of one address with one setting.
func both(name, value string) []string {
	quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value)
	return []string{
		"postgres://app:" + secret + "@localhost/usage?" + name + "=" + value,
		"host=localhost user=app password='" + secret + "' " + name + " = '" + quoted + "' dbname=usage",
	}
}

// A setting of libpq that is not known here is honoured, or refused by its name with
// what to do instead. None reaches the server, which would refuse every connection.
func TestSettingsOfLibpqAreHonouredOrRefusedByName(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"channel_binding", "prefer", ""}, {"channel_binding", "disable", ""}, {"channel_binding", "require", "sslmode=verify-full"},
		{"gssencmode", "disable", ""}, {"gssencmode", "prefer", ""}, {"gssencmode", "require", "sslmode"},
		{"require_auth", "scram-sha-256", "sslmode=verify-full"},
		{"keepalives", "1", ""}, {"keepalives", "0", ""}, {"keepalives", "maybe", "0 or 1"},
		{"keepalives_idle", "30", ""}, {"keepalives_interval", "5", ""}, {"keepalives_count", "3", ""}, {"keepalives_idle", "soon", "seconds"}, {"keepalives_count", "-1", "number"},
		{"tcp_user_timeout", "0", ""}, {"tcp_user_timeout", "1000", "30 s"},
		{"default_query_exec_mode", "exec", ""}, {"default_query_exec_mode", "simple_protocol", ""}, {"default_query_exec_mode", "cache_statement", "pgx"},
		{"statement_cache_capacity", "0", ""}, {"statement_cache_capacity", "512", "pgx"}, {"description_cache_capacity", "9", "pgx"},
		{"pool_max_conns", "10", "SetMaxOpenConns"}, {"pool_max_conn_lifetime", "1h", "SetConnMaxLifetime"}, {"pool_max_conn_idle_time", "1h", "SetConnMaxIdleTime"},
		{"sslnegotiation", "postgres", ""}, {"sslnegotiation", "sometimes", "sslnegotiation"},
		{"client_encoding", "UTF8", ""}, {"client_encoding", "latin1", "client_encoding"}, {"client_encoding", "auto", "client_encoding"},
		{"target_session_attrs", "read-write", ""}, {"target_session_attrs", "any", ""}, {"target_session_attrs", "first", "target_session_attrs"},
		{"load_balance_hosts", "disable", ""}, {"load_balance_hosts", "random", ""}, {"load_balance_hosts", "x", "load_balance_hosts"},
		{"replication", "false", ""}, {"replication", "database", "replication"},
		{"ssl", "true", ""}, {"ssl", "false", "sslmode"}, {"requiressl", "1", "sslmode=require"}, {"sslcompression", "0", ""}, {"sslcompression", "1", "sslcompression"},
		{"sslpassword", "x", "sslkey"}, {"sslcertmode", "allow", ""}, {"sslcertmode", "require", "sslcert"}, {"sslcrl", "/x", "sslcrl"}, {"sslcrldir", "/x", "sslcrldir"}, {"sslkeylogfile", "/x", "sslkeylogfile"},
		{"requirepeer", "postgres", "requirepeer"}, {"gsslib", "gssapi", "gsslib"}, {"gssdelegation", "0", ""}, {"gssdelegation", "1", "gssdelegation"},
		{"scram_client_key", "x", "scram_client_key"}, {"scram_server_key", "x", "scram_server_key"}, {"oauth_issuer", "x", "oauth_issuer"}, {"oauth_client_id", "x", "oauth_client_id"}, {"oauth_client_secret", "x", "oauth_client_secret"}, {"oauth_scope", "x", "oauth_scope"},
		{"authtype", "x", ""}, {"tty", "x", ""}, {"servicefile", "/x", "servicefile"}, {"service", "nowhere", "service"},
		{"pgbouncer", "true", ""}, {"pgbouncer", "maybe", "pgbouncer"}, {"connection_limit", "1", "SetMaxOpenConns"}, {"pool_timeout", "1", "pool_timeout"}, {"schema", "app", "Config.Schema"}, {"currentSchema", "app", "Config.Schema"}, {"prepareThreshold", "0", ""}, {"prepareThreshold", "5", "prepareThreshold"},
		{"port", "many", "port"}, {"sslmode", "sometimes", "sslmode"}, {"connect_timeout", "soon", "connect_timeout"}, {"datestyle", "German", "datestyle"}, {"hostaddr", "here", "hostaddr"},
		{"search_path", "app", ""}, {"application_name", "x'y\\z", ""}, {"statement_timeout", "5000", ""},
	} {
		for _, dsn := range both(c.name, c.value) {
			cfg, _, err := parse(dsn)
			db, opened := Open(dsn)
			if opened == nil {
				_ = db.Close()
			}
			switch {
			case (err == nil) != (opened == nil):
				t.Errorf("%s: parse says %v, Open %v", dsn, err, opened)
			case c.want == "":
				if err != nil {
					t.Errorf("%s=%s: %v", c.name, c.value, err)
				}
				if _, sent := cfg.Runtime[c.name]; sent && c.name != "search_path" && c.name != "statement_timeout" {
					t.Errorf("%s is sent to the server", c.name)
				}
				if c.name == "search_path" && cfg.Runtime[c.name] != c.value {
					t.Errorf("search_path is not sent to the server")
				}
			case err == nil || !strings.Contains(err.Error(), c.name) || !strings.Contains(err.Error(), c.want):
				t.Errorf("%s=%s: %v, want %s and %q", c.name, c.value, err, c.name, c.want)
			case strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "percent-encoded"):
				t.Errorf("%s=%s: %v: that is no matter of the password", c.name, c.value, err)
			}
		}
	}
}

// What stands in a connection string may be a part of a password, so an error shows
// nothing of it but names that libpq has.
func TestErrorsHoldNothingOfTheAddress(t *testing.T) {
	for _, dsn := range []string{
		"postgres://app:" + secret + "@[::1/x", "postgres://app:" + secret + "%zz@localhost/x", "postgres://app:x/" + secret + "@localhost/x", "postgres://app:x#" + secret + "@localhost/x",
		"postgres://app:x?" + secret + "@localhost/x", "postgres://app:x@localhost:" + secret + "/x",
		"postgres://app:x@localhost/x?sslmode=" + secret, "postgres://app:x@localhost/x?channel_binding=" + secret, "postgres://app:x@localhost/x?keepalives_idle=" + secret,
		"host=localhost password=x " + secret + " sslmode=disable", "host=localhost password='" + secret, "host=localhost password=" + secret + " sslmode=sometimes", "host=localhost port=" + secret,
		"host=localhost password=x\\", "mysql://app:" + secret + "@localhost/x", secret, "=" + secret, "service=" + secret,
	} {
		db, err := Open(dsn)
		if err == nil {
			_ = db.Close()
			t.Errorf("%q was taken", dsn)
			continue
		}
		for e := err; e != nil; {
			if strings.Contains(e.Error(), secret) {
				t.Errorf("%q stands in %v", secret, e)
			}
			u, ok := e.(interface{ Unwrap() error })
			if !ok {
				break
			}
			e = u.Unwrap()
		}
	}
}

// A variable that cannot be honoured is named, and not the URL blamed.
func TestEnvironmentIsHonouredOrRefusedByName(t *testing.T) {
	dsn := both("application_name", "x")[0]
	for _, c := range []struct {
		name, value string
		ok          bool
	}{
		{"PGAPPNAME", "x", true}, {"PGTARGETSESSIONATTRS", "read-write", true}, {"PGSSLMODE", "disable", true}, {"PGCONNECT_TIMEOUT", "3", true},
		{"PGCHANNELBINDING", "require", false}, {"PGGSSENCMODE", "disable", false}, {"PGREQUIREAUTH", "scram-sha-256", false}, {"PGSSLMODE", "sometimes", false}, {"PGPORT", "many", false},
		{"PGCLIENTENCODING", "latin1", false}, {"PGSERVICE", "nowhere", false},
	} {
		t.Run(c.name+"="+c.value, func(t *testing.T) {
			t.Setenv(c.name, c.value)
			db, err := Open(dsn)
			if err == nil {
				_ = db.Close()
			}
			if (err == nil) != c.ok {
				t.Fatalf("Open: %v", err)
			}
			if err != nil && (!strings.Contains(err.Error(), c.name) || strings.Contains(err.Error(), "percent-encoded") || strings.Contains(err.Error(), secret)) {
				t.Errorf("Open: %v, want %s", err, c.name)
			}
		})
	}
}

func TestServiceFiles(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	text := "[good]\nhost=localhost\nuser=app\npassword=" + secret + "\n\n[odd]\nhost=localhost\nchannel_binding=require\npassword=" + secret + "\n\n[torn]\n" + secret + "\n"
	if err := os.WriteFile(filepath.Join(home, ".pg_service.conf"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok := reflect.TypeFor[pq.Config]().FieldByName("Service"); !ok { // a lib/pq that reads no service files
		if _, _, err := parse("service=good"); err == nil || !strings.Contains(err.Error(), "service") || !strings.Contains(err.Error(), "into the address") {
			t.Errorf("good: %v", err)
		}
		return
	}
	if cfg, _, err := parse("service=good"); err != nil || cfg.User != "app" || cfg.Password != secret {
		t.Errorf("good: user %q, %v", cfg.User, err)
	}
	for _, service := range []string{"odd", "torn", "none"} {
		if _, _, err := parse("service=" + service); err == nil || !strings.Contains(err.Error(), "service file") || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", service, err)
		}
	}
	elsewhere := filepath.Join(home, "elsewhere")
	if err := os.WriteFile(elsewhere, []byte("[good]\nhost=localhost\nuser=other\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGSERVICEFILE", elsewhere)
	if cfg, _, err := parse("service=good"); err != nil || cfg.User != "other" {
		t.Errorf("a service file elsewhere: user %q, %v", cfg.User, err)
	}
}

func TestKeepalives(t *testing.T) {
	for dsn, want := range map[string]net.KeepAliveConfig{
		"host=localhost": {Enable: true},
		"host=localhost keepalives=1 keepalives_idle=7 keepalives_interval=3 keepalives_count=2":         {Enable: true, Idle: 7 * time.Second, Interval: 3 * time.Second, Count: 2},
		"host=localhost keepalives=0 keepalives_idle=7":                                                  {Idle: 7 * time.Second},
		"host=localhost keepalives_idle=0 keepalives_interval=0 keepalives_count=0":                      {Enable: true},
		"postgres://localhost/x?keepalives=1&keepalives_idle=7&keepalives_interval=3&keepalives_count=2": {Enable: true, Idle: 7 * time.Second, Interval: 3 * time.Second, Count: 2},
	} {
		if _, d, err := parse(dsn); err != nil || d.keepalive != want {
			t.Errorf("%s: %+v, %v; want %+v", dsn, d.keepalive, err, want)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, d, err := parse("host=localhost keepalives=0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.DialContext(context.WithoutCancel(t.Context()), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}
