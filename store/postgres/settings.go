package postgres

import "github.com/lib/pq"

func parse(dsn string) (pq.Config, dialer, error) {
	cfg, err := pq.NewConfig(dsn)
	return cfg, dialer{}, err
}
