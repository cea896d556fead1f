package routers

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/jmoiron/sqlx"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/usagekit/usagekit/dashboard"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/middleware"
	"github.com/usagekit/usagekit/store"
	usagepostgres "github.com/usagekit/usagekit/store/postgres"
)

var server *dbtest.Server

// The store lives in the pool of an application that has gin and gorm: neither is in
// the other's way, and each answer counts once.
func TestGinOnGormsPool(t *testing.T) {
	if server == nil {
		t.Log("gorm's pool was not tried: make test does")
		return
	}
	for name, prepared := range map[string]bool{"as it is": false, "with statements prepared": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			type message struct {
				ID   uint
				Text string
			}
			url := server.NewDatabase(t)
			db, err := gorm.Open(postgres.Open(url), &gorm.Config{PrepareStmt: prepared, Logger: logger.Discard})
			if err != nil {
				t.Fatal(err)
			}
			if err := db.AutoMigrate(&message{}); err != nil {
				t.Fatal(err)
			}
			pool, err := db.DB()
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			pool.SetMaxOpenConns(4)
			usage, err := store.New(t.Context(), sqlx.NewDb(pool, "pgx"), store.Config{Interval: 10 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}

			g := gin.New()
			g.Use(func(c *gin.Context) { middleware.SetRoute(c.Writer, c.FullPath()) })
			g.GET("/usage/*any", gin.WrapH(dashboard.New(usage, dashboard.Config{Auth: dashboard.Public})))
			g.POST("/messages", func(c *gin.Context) {
				m := message{Text: c.Query("text")}
				err := db.WithContext(c.Request.Context()).Transaction(func(tx *gorm.DB) error {
					if err := tx.Create(&m).Error; err != nil {
						return err
					}
					usage.Add("feature.messages.sent", 1)
					return nil
				})
				if err != nil {
					c.AbortWithStatus(http.StatusInternalServerError)
					return
				}
				c.JSON(http.StatusCreated, m)
			})
			g.GET("/messages/:id", func(c *gin.Context) {
				var m message
				if err := db.WithContext(c.Request.Context()).First(&m, c.Param("id")).Error; err != nil {
					c.AbortWithStatus(http.StatusNotFound)
					return
				}
				c.JSON(http.StatusOK, m)
			})
			count := middleware.New(usage, middleware.Config{Skip: []string{"/usage/"}})
			srv := httptest.NewServer(count(g))
			defer srv.Close()

			ask := func(method, path string, want int) {
				req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, nil)
				if err != nil {
					t.Error(err)
					return
				}
				resp, err := srv.Client().Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if _, _ = io.Copy(io.Discard, resp.Body); resp.StatusCode != want {
					t.Errorf("%s %s: %d, want %d", method, path, resp.StatusCode, want)
				}
			}
			const clients, each = 8, 25
			var asking sync.WaitGroup
			for i := range clients {
				asking.Go(func() {
					for j := range each {
						ask(http.MethodPost, "/messages?text="+strconv.Itoa(i*each+j), http.StatusCreated)
						ask(http.MethodGet, "/messages/1", http.StatusOK)
						ask(http.MethodGet, "/messages/0", http.StatusNotFound)
						ask(http.MethodGet, "/usage/api/stats", http.StatusOK)
					}
				})
			}
			asking.Wait()
			if err := db.AutoMigrate(&message{}); err != nil { // with our tables beside its own
				t.Error(err)
			}
			var rows int64
			if err := db.Model(&message{}).Count(&rows).Error; err != nil || rows != clients*each {
				t.Errorf("the application has %d rows (%v), want %d", rows, err, clients*each)
			}
			srv.Close()
			if err := usage.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := pool.Ping(); err != nil {
				t.Errorf("the application's pool afterwards: %v", err)
			}

			// Another pool, opened as the README has it, reads what gorm's has stored.
			own, err := usagepostgres.Open(url)
			if err != nil {
				t.Fatal(err)
			}
			defer own.Close()
			reader, err := store.New(t.Context(), own, store.Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = reader.Shutdown(t.Context()) }()
			for counter, want := range map[string]int64{
				"feature.messages.sent":       clients * each,
				"api.POST /messages.requests": clients * each, "api.POST /messages.status_2xx": clients * each,
				"api.GET /messages/:id.requests": 2 * clients * each, "api.GET /messages/:id.status_2xx": clients * each, "api.GET /messages/:id.status_4xx": clients * each,
				"api.(unmatched).requests": 0,
			} {
				if got, err := reader.Get(t.Context(), counter); err != nil || got != want {
					t.Errorf("%s: %d, %v, want %d", counter, got, err, want)
				}
			}
		})
	}
}
