package main

import "fmt"

// sides are the parts that this program plays in processes of their own. Each
// listens, calls ready with its address, and runs until the process is ended.
var sides = map[string]func(args []string) error{
	"ask":     askSide,
	"backlog": backlogSide,
	"echo":    echoSide,
	"lab":     labSide,
}

// sideCommand is the first argument of a process that plays a side.
const sideCommand = "side"

// ready tells the parent where the side listens.
func ready(address string) { fmt.Println(address) }
