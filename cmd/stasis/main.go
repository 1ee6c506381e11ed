// Stasis checkpoints and restores running processes: see "stasis help".
package main

import (
	"os"

	"stasis/internal/cli"
)

func main() { os.Exit(cli.Run(os.Args[1:])) }
