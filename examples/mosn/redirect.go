// A node proxy that learns by SO_ORIGINAL_DST what was dialled, as proxies made for iptables REDIRECT do: MOSN with
// use_original_dst "redirect", Linkerd's, ztunnel. IPv4.
//
//	go build -o redirect redirect.go && ./redirect 127.0.0.1:15001
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

const soOriginalDst = 80 // linux/netfilter_ipv4.h

// original is asked as MOSN asks: with an option of 20 bytes, of which the first 16 are a struct sockaddr_in.
func original(conn *net.TCPConn) (address string, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return "", err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		var mreq *syscall.IPv6Mreq
		if mreq, failed = syscall.GetsockoptIPv6Mreq(int(fd), syscall.IPPROTO_IP, soOriginalDst); failed == nil {
			at := mreq.Multiaddr
			address = fmt.Sprintf("%s:%d", net.IP(at[4:8]), int(at[2])<<8|int(at[3]))
		}
	})
	if err == nil {
		err = failed
	}
	return address, err
}

func pass(client *net.TCPConn) {
	defer client.Close()
	dialled, err := original(client)
	fmt.Printf("peer=%s dialled=%s error=%v\n", client.RemoteAddr(), dialled, err)
	if err != nil {
		return // nobody intercepted it: nowhere to go
	}
	server, err := net.Dial("tcp", dialled)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		io.Copy(server, client)
		server.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(client, server)
}

func main() {
	// Since 1.24 Go listens by Multipath TCP where it is not told otherwise, and such a listener is not adopted.
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	listener, err := config.Listen(context.Background(), "tcp", os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		if conn, err := listener.Accept(); err == nil {
			go pass(conn.(*net.TCPConn))
		}
	}
}
