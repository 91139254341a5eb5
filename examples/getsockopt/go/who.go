// A proxy's part of the identity API in Go, without cgo: listens where nodesentry hands over what it intercepts, and says
// for each connection, as a line, who has opened it and to where.
//
//	go build -o who who.go && ./who 127.0.0.1:15001
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// include/nodesentry.h
const (
	solNodesentry = 0x4e53
	peerID        = 1
	peer          = 2
	spiffeMax     = 640
)

// end is struct nodesentry_end.
type end struct {
	Version, Size                    uint16
	Direction, Assurance, Runtime, _ uint8
	Generation, _                    uint32
	PodUID, PodNamespace             [64]byte
	PodName, ServiceAccount          [256]byte
	App, Instance                    [64]byte
}

func getsockopt(conn *net.TCPConn, level, name, size int) ([]byte, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	value, length := make([]byte, size), uint32(size)
	var errno syscall.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, uintptr(level), uintptr(name),
			uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&length)), 0)
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return value[:length], err
}

func text(field []byte) string {
	before, _, _ := bytes.Cut(field, []byte{0})
	return string(before)
}

func answer(conn *net.TCPConn) string {
	id, err := getsockopt(conn, solNodesentry, peerID, spiffeMax)
	if err != nil {
		return fmt.Sprintf("refused: %v", err)
	}
	var pod end
	value, err := getsockopt(conn, solNodesentry, peer, binary.Size(pod))
	if err != nil {
		return fmt.Sprintf("refused: %v", err)
	}
	if err := binary.Read(bytes.NewReader(value), binary.NativeEndian, &pod); err != nil {
		return fmt.Sprintf("refused: %v", err)
	}
	// What the app has dialled is the connection's own address here (TPROXY).
	return fmt.Sprintf("%s pod=%s/%s generation=%d to=%s", id, text(pod.PodNamespace[:]), text(pod.PodName[:]),
		pod.Generation, conn.LocalAddr())
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: who ADDRESS:PORT")
		os.Exit(2)
	}
	// Since 1.24 Go listens by Multipath TCP where it is not told otherwise, and such a listener is not adopted.
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	listener, err := config.Listen(context.Background(), "tcp", os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			continue
		}
		line := answer(conn.(*net.TCPConn))
		fmt.Println(line)
		fmt.Fprintln(conn, line)
		conn.Close()
	}
}
