// Package browser proves the dashboard's page in a real browser: a headless
// Chromium, one process for all tests, each in a tab of its own and with a server of
// its own, so that none shares a cache or storage with another. It is a module of its
// own, so that the driver stays out of usagekit's.
//
// Every test also fails for what the page must never do: an error or a warning in
// the console, an uncaught exception, a breach of the Content-Security-Policy, an
// alert, a request to another host. See watch_test.go; then tab_test.go is what a
// person does, site_test.go what is shown, and each other file a part of the page.
//
//	USAGEKIT_CHROMIUM=require    fail without Chromium, in place of skipping
//	USAGEKIT_BROWSER=full        TestHeavy with 1 M users and 500 refreshes (with -timeout 1h)
//	USAGEKIT_SCREENSHOTS=dir     where TestPictures writes what it saw
package browser

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/chromedp/chromedp"
)

// chromium is the running browser; nil without one.
var chromium context.Context

func TestMain(m *testing.M) {
	// On two cores more tabs at a time only wait for each other. -parallel overrides it.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	program := findChromium()
	if program == "" {
		if os.Getenv("USAGEKIT_CHROMIUM") == "require" {
			fmt.Fprintln(os.Stderr, "browser: no Chromium on PATH, and USAGEKIT_CHROMIUM=require (Debian: apt-get install chromium)")
			return 1
		}
		fmt.Fprintln(os.Stderr, "The page was not tried: there is no Chromium on PATH; make test installs one on Debian, as root")
		return m.Run()
	}
	// The profile is a temporary directory, and the process ends with this one,
	// however that ends: it is tied to it, and reads its commands from a pipe.
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program),
		chromedp.Flag("headless", "new"),
		chromedp.NoSandbox, // in a container, as root
		chromedp.DisableGPU,
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-features", "Translate,OptimizationHints,MediaRouter,SpareRendererForSitePerProcess"),
		chromedp.Flag("disable-domain-reliability", true),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("no-proxy-server", true),
		// No name has an address: what the page should not ask, it cannot.
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
		chromedp.Flag("lang", "en-US"),
		chromedp.Flag("force-prefers-reduced-motion", true), // whose frames cost time
		chromedp.WindowSize(1280, 900),
	)...)
	defer cancel()
	ctx, cancel = chromedp.NewContext(ctx)
	defer cancel()
	if err := chromedp.Do(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "browser: starting Chromium:", err)
		return 1
	}
	chromium = ctx
	code := m.Run()
	ctx, cancel = context.WithTimeout(ctx, patience)
	defer cancel()
	if err := chromedp.Cancel(ctx); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "browser: stopping Chromium:", err)
		return 1
	}
	return code
}

func findChromium() string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}
