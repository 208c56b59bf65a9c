//go:build e2e

package pressure

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

const (
	// soakFor is the environment variable for the length of the soak.
	soakFor   = "STS_TLSMAP_SOAK"
	usualSoak = 36 * time.Second

	// Of a longer soak, the disk stalls for mostStall.
	mostStall = 80 * time.Second

	honestRate  = 1000 // lookups a second of held policies
	relays      = 20
	heldDomains = 200
	// newEvery is the time between two lookups of new honest domains.
	newEvery = time.Second

	sampleEvery = time.Second
	drainTime   = 90 * time.Second // until nothing of the attacks is left in the daemon
	slackFiles  = 16
)

// TestHonestLookupsAreAnsweredUnderAllAttacksAtOnce has the attacks of the other
// tests go on together, at a pace that keeps the machine busy, and the disk of the
// cache stall for a time.
func TestHonestLookupsAreAnsweredUnderAllAttacksAtOnce(t *testing.T) {
	length := usualSoak
	if text := os.Getenv(soakFor); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s: %v", soakFor, err)
		}
	}
	mountDisk(t, filepath.Dir(stage.CacheFile))
	w := newWorld(t)
	slow := slowDomains(100) // of which the checks at once fill all places
	for _, name := range slow {
		w.slowDANE(name)
	}
	w.slowDANE("ports.test")
	var held, signed []string
	for i := range heldDomains {
		name := fmt.Sprintf("held%d.test", i)
		// Some policies are short-lived: they are fetched again during a long soak.
		w.Domain(name, testlab.With{NoMail: true, Server: w.hosts[i%hosters], MaxAge: []time.Duration{15 * time.Minute, 7 * 24 * time.Hour}[i%2]})
		held = append(held, name)
	}
	for i := range 20 {
		name := fmt.Sprintf("signed%d.test", i)
		w.signedDANE(t, name)
		signed = append(signed, name)
	}
	w.Domain("deaf.test", testlab.With{NoMail: true, MX: longMX("deaf.test"), Server: w.hosts[1]})
	d := w.startDaemon(t, "postfix", slices.Concat(slow, held, signed, []string{"deaf.test", "ports.test"})...)
	files := d.files(t)

	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	a := newAttack(ctx)
	a.pipeline(200, 50, overUnix, "postfix deaf.test")
	a.pipeline(800, 50, overUnix, "postfix-tlsrpt deaf.test")
	a.wait(24, overTCP, "postfix", numbered(stalls))
	a.wait(300, overTCP, "postfix", numbered(quiet))
	a.dash(400, overUnix, "postfix-dane", ports(slow...))
	a.dash(100, overTCP, "postfix-dane", ports(slow...))
	a.wait(200, overUnix, "postfix-dane", ports("ports.test"))

	var answers, dane, found tally
	var honest sync.WaitGroup
	for n := range relays {
		at := []endpoint.Endpoint{overTCP, overUnix}[n%2]
		honest.Go(func() { answers.askSteadily(ctx, at, honestRate/relays, "postfix", n, held) })
	}
	for i := range signed {
		honest.Go(func() { dane.askSteadily(ctx, overUnix, 1, "postfix-dane", 0, signed[i:i+1]) })
	}
	honest.Go(func() { found.askForNew(ctx, &honest) })
	honest.Go(func() { stall(ctx, t, filepath.Dir(stage.CacheFile), length/4, min(length/4, mostStall)) })
	memory, mostFiles := d.watch(ctx, t)
	a.stop()
	honest.Wait()

	d.report(t, fmt.Sprintf("soak of %s: %d hostile connections, %d descriptors at most, anonymous memory by quarters %v MiB\n    held policies: %s\n    with DANE: %s\n    new domains: %s",
		length, a.made.Load(), mostFiles, memory, &answers, &dane, &found))
	for what, y := range map[string]*tally{"held policies": &answers, "with DANE": &dane, "new domains": &found} {
		if y.notFound > 0 || y.ok == 0 || y.noAnswer*1000 > y.ok {
			t.Errorf("%s: %s\n%s", what, y, y.others())
		}
	}
	if answers.temp > 0 {
		t.Errorf("a held policy was TEMP %d times", answers.temp)
	}
	const slack = 32 // MiB: the collector lets the heap double
	if memory[3] > memory[2]+slack || slices.Max(memory) > mostMemory>>20 {
		t.Errorf("memory grows: %v MiB by quarters", memory)
	}
	if err := w.hosts[0].Down(); err != nil { // fetches that stall would last half a minute
		t.Error(err)
	}
	d.awaitRest(t, files)
}

// askSteadily asks for each of the domains in turn, at so many lookups a second.
func (y *tally) askSteadily(ctx context.Context, at endpoint.Endpoint, each rate.Limit, mapName string, first int, domains []string) {
	c := &relay{at: at}
	defer c.close()
	pace := rate.NewLimiter(each, 1)
	for i := first; pace.Wait(ctx) == nil; i += relays + 1 {
		y.ask(ctx, c, mapName, domains[i%len(domains)])
	}
}

// askForNew asks for new honest domains, every fourth of them at the address of
// the policy hosts that stall.
func (y *tally) askForNew(ctx context.Context, asking *sync.WaitGroup) {
	pace := rate.NewLimiter(rate.Every(newEvery), 1)
	for i := 0; pace.Wait(ctx) == nil; i++ {
		name := fmt.Sprintf("new%d.%s", i, honest)
		if i%4 == 0 {
			name = shared + name
		}
		asking.Go(func() {
			c := &relay{at: []endpoint.Endpoint{overTCP, overUnix}[i%2]}
			defer c.close()
			y.ask(ctx, c, "postfix", name)
		})
	}
}

// watch measures the daemon until ctx ends. It returns the most anonymous memory in
// each quarter of the time, in MiB, and the most descriptors.
func (d *daemon) watch(ctx context.Context, t *testing.T) (memory []int64, files int) {
	t.Helper()
	var samples []int64
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			samples = append(samples, d.anonymous(t)>>20)
			files = max(files, d.files(t))
			continue
		case <-ctx.Done():
		}
		for i := range 4 {
			memory = append(memory, slices.Max(samples[i*len(samples)/4:(i+1)*len(samples)/4]))
		}
		return memory, files
	}
}

// awaitRest waits until the daemon has no more descriptors than before the attacks.
func (d *daemon) awaitRest(t *testing.T, before int) {
	t.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), drainTime)
	defer cancel()
	err := stage.Await(ctx, func() bool { return d.files(t) <= before+slackFiles })
	t.Logf("%s after the attacks: %d descriptors (%d before), %d goroutines, %d MiB of anonymous memory",
		round(time.Since(begun)), d.files(t), before, d.goroutines(t), d.anonymous(t)>>20)
	if err != nil {
		t.Errorf("%d descriptors are left open; there were %d", d.files(t), before)
	}
}

// mountDisk mounts a disk of its own, which can be made to stall.
func mountDisk(t *testing.T, dir string) {
	t.Helper()
	image := stage.Path("disk")
	f, err := os.Create(image)
	if err == nil {
		err = f.Truncate(256 << 20)
		f.Close()
	}
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", image)
	run(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { // while it is mounted, the loop device is in use
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting the disk: %v", err)
		}
	})
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %v: %v\n%s", name, args, err, out)
	}
}

// stall has the disk take no write for a time, after another time. A test that is
// killed meanwhile leaves a frozen loop device: mount it, fsfreeze --unfreeze, umount.
func stall(ctx context.Context, t *testing.T, dir string, after, length time.Duration) {
	wait := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	wait(after)
	run(t, "fsfreeze", "--freeze", dir)
	defer run(t, "fsfreeze", "--unfreeze", dir)
	wait(length)
}
