package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "manta: Windows is not supported. Run it inside WSL 2 (https://learn.microsoft.com/windows/wsl/install): it is a Linux program there, GPUs included.")
	os.Exit(1)
}
