package cli

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	v1 "stasis/api/stasis/v1"
	"stasis/client"
)

func (a *app) daemonPageCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "page",
		Short: "Give a link to the daemon's page",
		Long: `Gives a link for a browser on this machine: jobs, the time line of their checkpoints, and the memory map of each. Who opens the link
sees what whoever asked for it may see. It works once, within five minutes; the page then works until the daemon ends.

The page is off unless daemon.page in the configuration says where to serve it. From another machine, open a tunnel first:
ssh -L 7070:127.0.0.1:7070 HOST.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.socketOf(cmd); err != nil {
				return err
			}
			return a.runDaemonPage(cmd.Context())
		},
	}
}

// pageReport is the result for programs.
type pageReport struct {
	URL     string    `json:"url"`
	Expires time.Time `json:"expires"`
}

func (a *app) runDaemonPage(ctx context.Context) error {
	c, err := a.daemon(ctx, true)
	if err != nil {
		return err
	}
	defer c.Close()
	response, err := c.System.Page(ctx, connect.NewRequest(&v1.PageRequest{}))
	if err != nil {
		return client.Explain(err)
	}
	report := pageReport{URL: response.Msg.GetUrl(), Expires: response.Msg.GetExpires().AsTime()}
	if a.output == outputJSON {
		return a.writeJSON(report)
	}
	fmt.Fprintln(a.out, report.URL)
	return nil
}
