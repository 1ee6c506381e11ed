package cli

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"stasis"
	"stasis/internal/criu"
	"stasis/internal/image"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of Stasis, its checkpoint format and CRIU",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.runVersion(cmd.Context()) },
	}
}

// versionReport is the result for programs.
type versionReport struct {
	Stasis   string `json:"stasis"`
	Format   int    `json:"format"` // of checkpoints: what is written, and the newest that is read
	Go       string `json:"go"`
	Platform string `json:"platform"`
	CRIU     string `json:"criu,omitempty"` // absent where none is usable
	CRIUPath string `json:"criu_path,omitempty"`
}

func (a *app) runVersion(ctx context.Context) error {
	report := versionReport{
		Stasis: stasis.Version, Format: image.FormatVersion, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	engine, err := criu.Find(ctx, a.criuPath)
	if err == nil {
		report.CRIU, report.CRIUPath = engine.VersionString(), engine.Path
	}
	if a.output == outputJSON {
		return a.writeJSON(report)
	}
	fmt.Fprintf(a.out, "stasis %s (checkpoint format %d, %s, %s)\n", report.Stasis, report.Format, report.Go, report.Platform)
	if err != nil {
		fmt.Fprintln(a.out, err)
		return nil
	}
	fmt.Fprintf(a.out, "CRIU %s (%s)\n", report.CRIU, report.CRIUPath)
	return nil
}

func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "man OUTDIR",
		Short:   "Write the man pages to a folder",
		Example: "  stasis man /usr/local/share/man/man1",
		Args:    oneArg("the folder"),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.runMan(cmd.Root(), args[0]) },
	}
}

func (a *app) runMan(root *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return badInput("make the folder for the man pages: %w", err)
	}
	root.DisableAutoGenTag = true
	header := &doc.GenManHeader{Section: "1", Source: "Stasis " + stasis.Version, Manual: "Stasis"}
	if err := doc.GenManTree(root, header, dir); err != nil {
		return fmt.Errorf("write the man pages: %w", err)
	}
	pages := 0
	for range documented(root) {
		pages++
	}
	if a.output == outputJSON {
		return a.writeJSON(struct {
			Dir   string `json:"dir"`
			Pages int    `json:"pages"`
		}{dir, pages})
	}
	if !a.quiet {
		fmt.Fprintf(a.out, "wrote %s to %s\n", plural(pages, "man page"), dir)
	}
	return nil
}

// documented gives a command and all below it that are for people, parents first.
func documented(cmd *cobra.Command) func(yield func(*cobra.Command) bool) {
	return func(yield func(*cobra.Command) bool) { walk(cmd, yield) }
}

func walk(cmd *cobra.Command, yield func(*cobra.Command) bool) bool {
	if !yield(cmd) {
		return false
	}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && !sub.IsAdditionalHelpTopicCommand() && !walk(sub, yield) {
			return false
		}
	}
	return true
}

// commandsMarkdown is docs/commands.md: the help of all commands.
func commandsMarkdown(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("# Commands\n\nWritten from the commands' own help by `go test ./internal/cli -update`; a test holds it fresh.\n")
	for _, g := range root.Groups() {
		var names []string
		for _, cmd := range root.Commands() {
			if cmd.GroupID == g.ID && cmd.Name() != "help" {
				names = append(names, fmt.Sprintf("[%s](#stasis-%s)", cmd.Name(), cmd.Name()))
			}
		}
		fmt.Fprintf(&b, "\n**%s** %s\n", g.Title, strings.Join(names, ", "))
	}
	for cmd := range documented(root) {
		if cmd.HasParent() && cmd.Parent().Name() == "completion" {
			continue // four times the same
		}
		fmt.Fprintf(&b, "\n## %s\n\n", cmd.CommandPath())
		text := cmd.Long
		if text == "" {
			text = cmd.Short
		}
		fmt.Fprintf(&b, "%s\n\n", fenceIndented(strings.TrimSpace(text)))
		if cmd.Runnable() && cmd.HasParent() {
			fmt.Fprintf(&b, "    %s\n\n", cmd.UseLine())
		}
		if cmd.Example != "" {
			fmt.Fprintf(&b, "Examples:\n\n```sh\n%s\n```\n\n", strings.ReplaceAll(strings.TrimPrefix(cmd.Example, "  "), "\n  ", "\n"))
		}
		if usages := cmd.NonInheritedFlags().FlagUsages(); usages != "" {
			fmt.Fprintf(&b, "Flags:\n\n```\n%s```\n", usages)
		}
	}
	return strings.ReplaceAll(b.String(), "\n\n\n", "\n\n")
}

// fenceIndented turns the indented lists of a help text into what Markdown keeps as it is.
func fenceIndented(text string) string { return strings.ReplaceAll(text, "\n  ", "\n      ") }
