package postgres

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lib/pq"
)

// setting is one that libpq or another driver knows and lib/pq does not: it would be
// sent to the server, which refuses every connection for it.
type setting struct {
	honoured []string // values that ask for nothing that is not so; "*": any
	instead  string   // what to do about another
}

const withPgx = `remove it, or open the pool with pgx: sqlx.NewDb(db, "pgx")`

// https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
func notOfLibpq() map[string]setting {
	return map[string]setting{
		"channel_binding":          {[]string{"prefer", "disable"}, "lib/pq cannot bind to the channel: remove it and set sslmode=verify-full, which keeps others from standing between, or " + withPgx},
		"require_auth":             {nil, "lib/pq answers whatever the server asks for: remove it and set sslmode=verify-full, so that it is the right server"},
		"gssencmode":               {[]string{"disable", "prefer"}, "lib/pq has no encryption by GSSAPI: remove it, and set sslmode"},
		"gsslib":                   {nil, "remove it: lib/pq chooses the library"},
		"gssdelegation":            {[]string{"0"}, "lib/pq does not delegate credentials: remove it"},
		"tcp_user_timeout":         {[]string{"0"}, "remove it: a read or write that gets no further ends after 30 s"},
		"replication":              {[]string{"false", "off", "no", "0"}, "remove it: the store needs an ordinary connection"},
		"ssl":                      {[]string{"true"}, "set sslmode (disable, require, verify-ca or verify-full) instead"},
		"requiressl":               {[]string{"0"}, "set sslmode=require instead"},
		"sslcompression":           {[]string{"0"}, "there is none any more: remove it"},
		"sslpassword":              {nil, "lib/pq reads no encrypted key: name a file without a password as sslkey"},
		"sslcertmode":              {[]string{"allow"}, "remove it: a certificate is sent when sslcert names one and the server asks"},
		"sslcrl":                   {nil, "lib/pq reads no revocation lists: remove it"},
		"sslcrldir":                {nil, "lib/pq reads no revocation lists: remove it"},
		"sslkeylogfile":            {nil, "lib/pq writes none: remove it"},
		"ssl_min_protocol_version": {[]string{"TLSv1", "TLSv1.1", "TLSv1.2"}, "remove it: TLS 1.2 is the least that is taken"},
		"ssl_max_protocol_version": {[]string{"TLSv1.3"}, "remove it: the newest version that both know is taken"},
		"min_protocol_version":     {[]string{"3.0"}, "remove it: lib/pq speaks 3.0"},
		"max_protocol_version":     {[]string{"3.0", "3.2", "latest"}, "remove it: lib/pq speaks 3.0"},
		"requirepeer":              {nil, "lib/pq does not ask who owns the socket: remove it"},
		"scram_client_key":         {nil, "give the password instead"},
		"scram_server_key":         {nil, "give the password instead"},
		"oauth_issuer":             {nil, "lib/pq knows no OAuth: give a password"},
		"oauth_client_id":          {nil, "lib/pq knows no OAuth: give a password"},
		"oauth_client_secret":      {nil, "lib/pq knows no OAuth: give a password"},
		"oauth_scope":              {nil, "lib/pq knows no OAuth: give a password"},
		"authtype":                 {[]string{"*"}, ""}, // libpq ignores it, too
		"tty":                      {[]string{"*"}, ""},
		"service":                  {nil, "put what the service has into the address"},
		"servicefile":              {nil, "put what the service has into the address"},

		// Of pgx. Nothing here is prepared by name, as those want it who set the first.
		"default_query_exec_mode":       {[]string{"exec", "simple_protocol"}, "it is pgx's, and nothing is prepared by name here: " + withPgx},
		"statement_cache_capacity":      {[]string{"0"}, "it is pgx's, and nothing is prepared by name here: " + withPgx},
		"description_cache_capacity":    {[]string{"0"}, "it is pgx's, and nothing is prepared by name here: " + withPgx},
		"pool_max_conns":                {nil, "call SetMaxOpenConns on the pool instead"},
		"pool_min_conns":                {nil, "call SetMaxIdleConns on the pool instead"},
		"pool_min_idle_conns":           {nil, "call SetMaxIdleConns on the pool instead"},
		"pool_max_conn_lifetime":        {nil, "call SetConnMaxLifetime on the pool instead"},
		"pool_max_conn_idle_time":       {nil, "call SetConnMaxIdleTime on the pool instead"},
		"pool_max_conn_lifetime_jitter": {nil, "call SetConnMaxLifetime on the pool instead"},
		"pool_health_check_period":      {nil, "remove it: database/sql tries a connection before it is used again"},

		// Of drivers of other languages.
		"pgbouncer":        {[]string{"true"}, "remove it: every statement is fit for PgBouncer"},
		"connection_limit": {nil, "call SetMaxOpenConns on the pool instead"},
		"pool_timeout":     {nil, "remove it: what waits for a connection has a context"},
		"schema":           {nil, "set Config.Schema of the store, or search_path, instead"},
		"currentSchema":    {nil, "set Config.Schema of the store, or search_path, instead"},
		"prepareThreshold": {[]string{"0"}, "remove it: nothing is prepared by name here"},
	}
}

// parse reads a connection string. Its errors show nothing of it but the names of
// settings that some driver has: whatever else stands there may be part of a password.
func parse(dsn string) (pq.Config, dialer, error) {
	cfg, err := pq.NewConfig(dsn)
	if err != nil {
		return pq.Config{}, dialer{}, blame(dsn, err)
	}
	d := dialer{keepalive: net.KeepAliveConfig{Enable: true}}
	if err := d.configure(cfg.Runtime); err != nil {
		return pq.Config{}, dialer{}, err
	}
	known, setting := notOfLibpq(), regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)
	for _, name := range slices.Sorted(maps.Keys(cfg.Runtime)) {
		s, ok := known[name]
		switch {
		case !ok && !setting.MatchString(name):
			return pq.Config{}, dialer{}, errUnreadable
		case !ok: // the server's
		case slices.Contains(s.honoured, "*") || slices.Contains(s.honoured, cfg.Runtime[name]):
			delete(cfg.Runtime, name)
		default:
			return pq.Config{}, dialer{}, refused(name, s.instead)
		}
	}
	return cfg, d, nil
}

var errUnreadable = errors.New("postgres: the database's URL cannot be understood: want postgres://user:password@host:port/database, with special characters in the password percent-encoded (it is not shown here, as it may hold one)")

func refused(name, why string) error {
	return fmt.Errorf("postgres: %s in the database's URL cannot be honoured: %s", name, why)
}

// configure takes the settings that are about how long silence is borne.
func (d *dialer) configure(runtime map[string]string) error {
	for _, name := range []string{"keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"} {
		value, ok := runtime[name]
		if !ok {
			continue
		}
		delete(runtime, name)
		n, err := strconv.Atoi(value)
		if name == "keepalives" {
			if err != nil || n < 0 || n > 1 {
				return refused(name, "want 0 or 1")
			}
			d.keepalive.Enable = n == 1
			continue
		}
		if err != nil || n < 0 || n > 1<<20 {
			return refused(name, "want a number: of probes, or of seconds; 0 for the system's")
		}
		switch name {
		case "keepalives_idle":
			d.keepalive.Idle = time.Duration(n) * time.Second
		case "keepalives_interval":
			d.keepalive.Interval = time.Duration(n) * time.Second
		default:
			d.keepalive.Count = n
		}
	}
	return nil
}

// blame finds what lib/pq does not take: a variable of the environment, or the one
// setting that it does not take alone either.
func blame(dsn string, cause error) error {
	if _, err := pq.NewConfig("host=localhost user=x"); err != nil {
		var set, named []string
		for _, v := range os.Environ() {
			name, _, _ := strings.Cut(v, "=")
			if !strings.HasPrefix(name, "PG") || name == "PGPASSWORD" {
				continue
			}
			set = append(set, name)
			if strings.Contains(cause.Error(), "$"+name+" ") || strings.Contains(cause.Error(), "$"+name+":") {
				named = append(named, name)
			}
		}
		if named == nil {
			named = set
		}
		return errors.New("postgres: the environment has a value that lib/pq does not take: unset " + strings.Join(named, " or ") + ", or correct it")
	}
	values := settings(dsn)
	for _, field := range reflect.VisibleFields(reflect.TypeFor[pq.Config]()) {
		name := field.Tag.Get("postgres")
		value, ok := values[name]
		if !ok || name == "-" {
			continue
		}
		if _, err := pq.NewConfig(name + "='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"); err == nil {
			continue
		}
		switch name {
		case "sslnegotiation":
			return refused(name, "want postgres or direct")
		case "client_encoding":
			return refused(name, "want UTF8, or remove it")
		case "service":
			return refused(name, "the service file (PGSERVICEFILE, ~/.pg_service.conf) has no such service, or one with a setting that lib/pq does not know")
		}
		return refused(name, "it has a value that lib/pq does not take")
	}
	return errUnreadable
}

// settings are what a connection string says, in either form.
func settings(dsn string) map[string]string {
	values := map[string]string{}
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		u, err := url.Parse(dsn)
		if err != nil {
			return nil
		}
		for name, list := range u.Query() {
			values[name] = list[0]
		}
		return values
	}
	keyValue := regexp.MustCompile(`([^\s=]+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s\\]|\\.)*)`)
	escaped := regexp.MustCompile(`\\(.)`)
	for _, m := range keyValue.FindAllStringSubmatch(dsn, -1) {
		value := m[2]
		if strings.HasPrefix(value, "'") {
			value = value[1 : len(value)-1]
		}
		values[m[1]] = escaped.ReplaceAllString(value, "$1")
	}
	return values
}
