package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	v1 "stasis/api/stasis/v1"
	"stasis/client"
	"stasis/internal/require"
)

// browser is a headless Chromium with one tab.
type browser struct {
	*testing.T
	ctx context.Context

	mu   sync.Mutex
	said []string // guarded by mu: on the console
}

// pageLimit is how long anything on the page may take on the slowest machine.
const pageLimit = 60 * time.Second

func openBrowser(t *testing.T) *browser {
	t.Helper()
	path := require.Program(t, "chromium")
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(path), chromedp.WSURLReadTimeout(pageLimit), chromedp.UserDataDir(t.TempDir()), chromedp.DisableGPU,
		chromedp.NoSandbox, // it needs a user other than root
		// What leads outside of this machine leads nowhere.
		chromedp.Flag("proxy-server", "http://127.0.0.1:9"), chromedp.Flag("proxy-bypass-list", "127.0.0.1"),
	)
	allocator, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancelTab := chromedp.NewContext(allocator)
	b := &browser{T: t, ctx: ctx}
	t.Cleanup(func() {
		ending, cancel := context.WithTimeout(ctx, pageLimit)
		defer cancel()
		_ = chromedp.Cancel(ending) // waits for its end, before its folder is removed
		cancelTab()
	})
	messages := chromedp.Console(ctx)
	go func() {
		for m, err := range messages {
			if err != nil {
				return
			}
			b.mu.Lock()
			b.said = append(b.said, fmt.Sprintf("%s: %s (%s:%d)", m.Type, m.Text, m.URL, m.Line))
			b.mu.Unlock()
		}
	}()
	return b
}

func (b *browser) do(steps ...chromedp.Action[chromedp.Void]) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pageLimit)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.Fatal(err)
	}
}

// get evaluates an expression.
func get[T any](b *browser, expression string) T {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pageLimit)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.Fatalf("%s: %v", expression, err)
	}
	return value
}

// wait waits until an expression is true.
func (b *browser) wait(what, expression string) {
	b.Helper()
	for deadline := time.Now().Add(pageLimit); !get[bool](b, expression); <-time.After(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("%s: not within %v; the page says\n%s\nand on its console\n%s", what, pageLimit, get[string](b, "document.body.innerText"), strings.Join(b.console(), "\n"))
		}
	}
}

func (b *browser) console() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.said)
}

func (b *browser) press(keys ...string) {
	b.Helper()
	for _, k := range keys {
		b.do(chromedp.KeyEvent(k))
	}
}

// focused names what has the focus.
const focused = `(document.activeElement.id || document.activeElement.value || document.activeElement.className || document.activeElement.tagName)`

// tab presses Tab until something has the focus. On the way everything that has it must show it.
func (b *browser) tab(to string) {
	b.Helper()
	var way []string
	for range 30 {
		b.press(kb.Tab)
		at := get[string](b, focused)
		if way = append(way, at); at != "BODY" && !get[bool](b, showsFocus) {
			b.Errorf("it cannot be seen that %s has the focus", at)
		}
		if at == to {
			return
		}
	}
	b.Fatalf("30 times Tab do not lead to %s, but to %v", to, way)
}

// showsFocus: it, its chosen option, or what stands for it has an outline.
const showsFocus = `(() => {
	const e = document.activeElement;
	return [e, e.nextElementSibling, e.querySelector('[aria-selected=true]')].some(x => x && getComputedStyle(x).outlineStyle !== 'none' && parseFloat(getComputedStyle(x).outlineWidth) >= 2);
})()`

func (b *browser) text(id string) string {
	b.Helper()
	return get[string](b, "document.getElementById('"+id+"').innerText")
}

func (b *browser) scheme(name string) {
	b.Helper()
	if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}}}); err != nil {
		b.Fatal(err)
	}
}

// The page in a real browser, of real checkpoints: by keyboard alone somebody goes to a checkpoint and looks at its memory in both ways;
// a new checkpoint appears and moves nothing; names, roles, contrast and widths are as they should be.
func TestPage(t *testing.T) {
	b := newJobBench(t)
	require.Program(t, "chromium")
	b.env = append(b.env, "STASIS_DAEMON_PAGE=127.0.0.1:0")
	script := "import os, time\na = [os.urandom(4096) for _ in range(700)]\nwhile True:\n    a[int(time.time() * 20) % 700] = os.urandom(4096)\n    time.sleep(0.05)"
	const markup = "<img src=x onerror=alert(1)>" // what somebody calls his job must not become part of the page
	b.run("run", "--name", "letters", "--", require.Program(t, "python3"), "-c", script, markup)
	for range 3 {
		b.run("dump", "job", "letters")
	}
	plain := exec.Command("sleep", "1000")
	plain.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := plain.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Process.Kill(); _ = plain.Wait() }()
	b.run("dump", "process", fmt.Sprint(plain.Process.Pid), "--name", "by-hand", "--leave-running")
	newest := b.checkMaps()

	p := openBrowser(t)
	link := strings.TrimSpace(b.run("daemon", "page"))
	p.do(chromedp.EmulateViewport(1400, 900), chromedp.Navigate(link))
	p.wait("three checkpoints", "document.querySelectorAll('#timeline [role=option]').length === 3")
	p.mapIsThere()
	if hash := get[string](p, "location.href"); strings.Contains(hash, "#") {
		t.Errorf("the code is still in the address: %s", hash)
	}
	if got := p.text("jobs"); !strings.Contains(got, "letters") || !strings.Contains(got, "running") || !strings.Contains(got, "Without a job") {
		t.Errorf("the jobs are %q", got)
	}
	if got := p.text("group-command"); !strings.Contains(got, markup) || get[int](p, "document.querySelectorAll('#group-command *').length") != 0 {
		t.Errorf("the command is shown as %q", got)
	}
	if got := p.text("detail-title"); got != "Checkpoint "+newest {
		t.Errorf("at first it shows %q, and the newest is %s", got, newest)
	}
	p.byKeyboard()
	p.staysInPlace(func() { b.run("dump", "job", "letters") })
	p.tree()
	for _, scheme := range []string{"light", "dark"} {
		p.scheme(scheme)
		if bad := get[[]string](p, poorContrast); len(bad) > 0 {
			t.Errorf("%s: these can hardly be read: %s", scheme, strings.Join(bad, "; "))
		}
	}
	for _, width := range []int64{400, 800, 1400, 2000} {
		p.do(chromedp.EmulateViewport(width, 900))
		if got := get[int64](p, "document.documentElement.scrollWidth"); got > width {
			t.Errorf("%d pixels wide, it needs %d", width, got)
		}
	}
	if said := p.console(); len(said) > 0 {
		t.Errorf("on the console: %s", strings.Join(said, "\n"))
	}
	p.refused(link, func() string { return strings.TrimSpace(b.run("daemon", "page")) })
	b.run("daemon", "stop")
	p.wait("it says that the daemon is gone", "document.getElementById('connection-text').innerText.includes('does not answer; what you see is as of')")
}

// checkMaps compares what the map says with what the dump says, and gives the name of the newest checkpoint.
func (b *jobBench) checkMaps() (newest string) {
	b.Helper()
	var socket string
	for _, e := range b.env {
		if value, ok := strings.CutPrefix(e, "STASIS_DAEMON_SOCKET="); ok {
			socket = value
		}
	}
	c, err := client.Connect(b.Context(), client.Options{Socket: socket})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	list, err := c.Checkpoints.List(b.Context(), connect.NewRequest(&v1.ListCheckpointsRequest{Job: "letters"}))
	if err != nil || list.Msg.GetTotal() != 3 {
		b.Fatalf("%v, %v", list, err)
	}
	for i, one := range list.Msg.GetCheckpoints() {
		response, err := c.Checkpoints.Map(b.Context(), connect.NewRequest(&v1.MapRequest{Checkpoint: one.GetDir()}))
		if err != nil {
			b.Fatal(err)
		}
		m := response.Msg
		var parts v1.MemoryParts
		kinds := map[v1.MemoryKind]bool{}
		for _, total := range m.GetTotals() {
			kinds[total.GetKind()] = true
			parts.Changed += total.GetParts().GetChanged() + total.GetParts().GetChangedPartly()
			parts.Unchanged += total.GetParts().GetUnchanged()
			parts.Zero += total.GetParts().GetZero()
			parts.StoredAgain += total.GetParts().GetStoredAgain()
		}
		// The figures are of what Stasis keeps; what CRIU does comes on top in the map.
		f := one.GetFigures()
		if all := parts.Changed + parts.Unchanged + parts.Zero + parts.StoredAgain; all < f.GetBytesMemory() || all > f.GetBytesMemory()+f.GetBytesFiles() {
			b.Errorf("the map of %s has %d bytes, and the dump %d and %d", one.GetName(), all, f.GetBytesMemory(), f.GetBytesFiles())
		}
		if first := i == 2; first != (parts.Unchanged == 0) || first != (f.GetBytesReferenced() == 0) || parts.Zero > 4096*f.GetZeroPages() {
			b.Errorf("%s: %v, and the dump says %v", one.GetName(), &parts, f)
		}
		for _, kind := range []v1.MemoryKind{v1.MemoryKind_MEMORY_KIND_HEAP, v1.MemoryKind_MEMORY_KIND_STACK, v1.MemoryKind_MEMORY_KIND_FILE, v1.MemoryKind_MEMORY_KIND_ANONYMOUS} {
			if !kinds[kind] {
				b.Errorf("%s: the map has no %v", one.GetName(), kind)
			}
		}
		if kinds[v1.MemoryKind_MEMORY_KIND_UNSPECIFIED] || len(m.GetNotes()) > 0 {
			b.Errorf("%s: something is not known: %v, %v", one.GetName(), m.GetTotals(), m.GetNotes())
		}
	}
	return list.Msg.GetCheckpoints()[0].GetName()
}

// mapIsThere waits until the memory map is that of the checkpoint that is chosen.
func (b *browser) mapIsThere() {
	b.Helper()
	b.wait("its map", "'point-' + document.querySelector('#map-box:not(.busy)')?.dataset.shows === "+chosen+"?.id && document.querySelectorAll('#mappings tr').length > 5")
}

// chosen is the checkpoint that is.
const chosen = "document.querySelector('#timeline [aria-selected=true]')"

const picture = "document.getElementById('map').toDataURL()"

// byKeyboard uses the page without a mouse.
func (b *browser) byKeyboard() {
	b.Helper()
	b.tab("jobs")
	b.press(kb.End)
	b.wait("checkpoints of no job", "document.getElementById('detail-title').innerText === 'Checkpoint by-hand'")
	b.press(kb.Home)
	b.wait("those of the job", "document.querySelectorAll('#timeline [role=option]').length === 3 && document.getElementById('group-title').innerText === 'letters'")
	b.mapIsThere()
	b.tab("timeline")
	b.press(kb.Home)
	b.wait("the first is chosen", chosen+"?.getAttribute('aria-posinset') === '1' && document.getElementById('facts').innerText.includes('it begins a chain')")
	if label := get[string](b, chosen+".getAttribute('aria-label')"); !strings.Contains(label, "begins a chain") || !strings.Contains(label, "pause ") || !strings.Contains(label, "full") {
		b.Errorf("the first checkpoint is called %q", label)
	}
	if got := get[string](b, "document.getElementById('timeline').getAttribute('aria-activedescendant')"); got != get[string](b, chosen+".id") {
		b.Errorf("the active one is said to be %q", got)
	}
	if get[string](b, "document.getElementById('follow').getAttribute('aria-pressed')") != "false" {
		b.Error("it goes on following the newest although another was chosen")
	}
	b.mapIsThere()
	b.tab("kind")
	before := get[string](b, picture)
	b.press(kb.ArrowRight)
	b.wait("colours of change", "document.querySelector('#colours [value=change]').checked")
	b.wait("all is new in the first", "document.getElementById('legend').innerText.includes('New') && !document.getElementById('legend').innerText.includes('Stored again')")
	if get[string](b, picture) == before {
		b.Error("the picture is the same in both colours")
	}
	b.press(kb.ArrowLeft)
	b.wait("colours of kinds", "document.getElementById('legend').innerText.includes('Heap')")
	b.press(kb.ArrowRight)
	b.tab("map")
	b.press(kb.End)
	last := get[string](b, "document.getElementById('map').getAttribute('aria-valuemax')")
	if got := get[string](b, "document.getElementById('map').getAttribute('aria-valuenow')"); got != last || last == "1" {
		b.Errorf("End leads to cell %s of %s", got, last)
	}
	b.press(kb.Home, kb.ArrowRight)
	if got := get[string](b, "document.getElementById('map').getAttribute('aria-valuenow')"); got != "2" {
		b.Errorf("Home and right lead to cell %s", got)
	}
	if got, said := b.text("readout"), get[string](b, "document.getElementById('map').getAttribute('aria-valuetext')"); got != said || !strings.Contains(got, "% new") || !strings.Contains(got, "0x") {
		b.Errorf("the cell is %q, and read out %q", got, said)
	}
	get[any](b, "document.getElementById('jobs').focus()")
	b.tab("timeline")
	b.press(kb.ArrowRight)
	b.wait("the second is chosen", chosen+"?.getAttribute('aria-posinset') === '2' && document.querySelector('#facts button') !== null")
	b.mapIsThere()
	if got := b.text("legend"); strings.Contains(got, "New") || !strings.Contains(got, "stored by an ancestor") {
		b.Errorf("the legend of the second says %q", got)
	}
	if get[string](b, focused) != "timeline" {
		b.Errorf("the focus went to %s", get[string](b, focused))
	}
}

// places are where the parts of the page are.
const places = `JSON.stringify(['head', 'timeline-frame', 'detail', 'facts', 'memory', 'map', 'readout'].map(id => {
	const r = document.getElementById(id).getBoundingClientRect();
	return [id, Math.round(r.x), Math.round(r.y + scrollY), Math.round(r.width)];
}))`

// staysInPlace sees that a new checkpoint changes neither what is chosen nor where things are.
func (b *browser) staysInPlace(dump func()) {
	b.Helper()
	before, title := get[string](b, places), b.text("detail-title")
	dump()
	b.wait("a fourth checkpoint", "document.querySelectorAll('#timeline [role=option]').length === 4")
	if after := get[string](b, places); after != before {
		b.Errorf("parts of the page moved from\n%s to\n%s", before, after)
	}
	if got := b.text("detail-title"); got != title {
		b.Errorf("it showed %q and now %q", title, got)
	}
}

// tree looks at what a screen reader gets: everything that can be used has a name, and lists have their options.
func (b *browser) tree() {
	b.Helper()
	tree, err := chromedp.Call(b.ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	if err != nil {
		b.Fatal(err)
	}
	count := map[string]int{}
	plain := func(v *accessibility.Value) (text string) {
		if v != nil {
			_ = json.Unmarshal(v.Value, &text)
		}
		return text
	}
	for _, n := range tree.Nodes {
		role, name := plain(n.Role), plain(n.Name)
		if n.Ignored {
			continue
		}
		count[role]++
		count[role+" "+name]++
		if slices.Contains([]string{"listbox", "option", "button", "radio", "slider", "link", "region", "navigation", "table", "heading", "columnheader", "list", "image"}, role) && strings.TrimSpace(name) == "" {
			b.Errorf("a %s has no name", role)
		}
	}
	for what, want := range map[string]int{
		"listbox Jobs": 1, "listbox Checkpoints": 1, "option": 6, "radio": 2, "radio Kind": 1, "radio Change since parent": 1, "slider Memory map": 1, "navigation Jobs": 1,
		"main": 1, "table": 1, "list Legend": 1, "button Follow the newest": 1, "heading Memory": 1, "status": 1, "region Mappings": 1, "columnheader": 8,
	} {
		if count[what] != want {
			b.Errorf("%d of %q, expected %d", count[what], what, want)
		}
	}
}

// poorContrast lists texts whose colour has a contrast under 4.5 with what is behind them (WCAG 2.2, 1.4.3). Opacity and what is drawn
// are not looked at.
const poorContrast = `(() => {
	const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
	const rgb = (...colours) => { // one over the other
		canvas.clearRect(0, 0, 1, 1);
		for (const c of colours) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); }
		return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
	};
	const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
	const bad = new Set(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	let seen = 0;
	while (walker.nextNode()) {
		const e = walker.currentNode.parentElement, said = walker.currentNode.data.trim();
		if (!said || !e.checkVisibility() || ['SCRIPT', 'NOSCRIPT'].includes(e.tagName)) continue;
		const behind = [];
		for (let at = e; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
		const back = rgb('white', ...behind), a = light(rgb('white', ...behind, getComputedStyle(e).color)), b = light(back);
		const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		seen++;
		if (ratio < 4.5) bad.add(said.slice(0, 40) + ' ' + ratio.toFixed(2));
	}
	if (seen < 50) bad.add('only ' + seen + ' texts were found');
	return [...bad];
})()`

// refused: a link that was used, and the page without one, say what to do, and show nothing.
func (b *browser) refused(link string, fresh func() string) {
	b.Helper()
	tab, cancel := chromedp.NewContext(b.ctx)
	defer cancel()
	other := &browser{T: b.T, ctx: tab}
	if err := chromedp.Do(tab); err != nil { // the tab lives as long as the context of the first thing that is done in it
		b.Fatal(err)
	}
	other.do(chromedp.Navigate(link))
	other.wait("a link that was used", "!document.getElementById('locked').hidden && document.body.innerText.includes('was used before')")
	address, _, _ := strings.Cut(link, "#")
	other.do(chromedp.Navigate("about:blank"), chromedp.Navigate(address))
	other.wait("no link", "!document.getElementById('locked').hidden && document.body.innerText.includes('sudo stasis daemon page')")
	if get[bool](other, "document.body.innerText.includes('letters')") {
		b.Error("a tab without a link shows jobs")
	}
	get[any](other, "location.href = '"+fresh()+"'")
	other.wait("a new link in the same tab", "document.getElementById('locked').hidden && document.getElementById('jobs').innerText.includes('letters')")
	b.do(chromedp.Reload())
	b.wait("after a reload the tab still has its session", "document.querySelectorAll('#timeline [role=option]').length === 4")
}
