package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"stasis/internal/config"
	"stasis/internal/store"
)

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show the configuration, or begin one",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.configShowCommand(), a.configInitCommand())
	return cmd
}

func (a *app) configShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Print every setting with its value and where that came from",
		Long: `Prints every setting with its value and where that came from: the default, a line of the file, or a variable of the environment.
A flag of a command has precedence over all of them.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return a.runConfigShow() },
	}
}

// configReport is the result for programs.
type configReport struct {
	File   string         `json:"file"`  // that was looked for
	Found  bool           `json:"found"` // it is there
	Values []config.Value `json:"values"`
}

func (a *app) runConfigShow() error {
	report := configReport{File: a.config.Path(), Values: a.config.Values()}
	_, err := os.Stat(report.File)
	report.Found = err == nil
	if a.output == outputJSON {
		return a.writeJSON(report)
	}
	rows := make([][]string, len(report.Values))
	for i, v := range report.Values {
		value := v.Value
		if value == "" {
			value = "–"
		}
		rows[i] = []string{v.Key, printable(value), v.Origin}
	}
	if err := table(a.out, []string{"SETTING", "VALUE", "FROM"}, rows); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	if !a.quiet && !report.Found {
		fmt.Fprintf(a.out, "\nthere is no %s; \"stasis config init\" writes one that explains every setting\n", report.File)
	}
	return nil
}

func (a *app) configInitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init [FILE]",
		Short: "Write a configuration in which every setting is explained and none is set",
		Long: `Writes a configuration in which every setting is explained and commented out, to FILE or where the configuration is looked
for. It overwrites nothing. A FILE of - is standard output.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return surplus(cmd, args[1:])
			}
			return nil
		},
		// The file that the configuration is looked for in need not be there, nor right.
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output == "" {
				a.output = outputText
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return a.runConfigInit(args) },
	}
}

func (a *app) runConfigInit(args []string) error {
	path := config.WhereIs(a.configPath, a.environ)
	if len(args) > 0 {
		path = args[0]
	}
	switch path {
	case standardStream:
		if _, err := io.WriteString(a.out, config.Template()); err != nil {
			return fmt.Errorf("write the configuration: %w", err)
		}
		return nil
	case "":
		return badInput("the file's name is empty: give one, or leave it out")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return badInput("make the folder for the configuration: %w", err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s %w: remove it first, or name another file", path, store.ErrExists)
	} else if err != nil {
		return badInput("write the configuration: %w", err)
	}
	_, err = file.WriteString(config.Template())
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	if a.output == outputJSON {
		return a.writeJSON(struct {
			File string `json:"file"`
		}{path})
	}
	if !a.quiet {
		fmt.Fprintf(a.out, "wrote %s: every setting in it is explained, and none is set\n", path)
	}
	return nil
}
