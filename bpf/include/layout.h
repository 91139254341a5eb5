/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Everything that crosses the kernel boundary. TypeScript reads these layouts from the objects' BTF by name
 * (src/datapath/layouts.ts); nothing is copied by hand. A change that adds, moves or drops a field of a pinned
 * map needs a new LAYOUT_VERSION, but for one that takes the place of padding and may be 0; a field, or a map without
 * fields, that comes to mean something else needs another name, for the next agent carries values over by name
 * (docs/upgrade.md). */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <nodesentry.h>

/* The folder of the pins under the bpffs, v1; a newer agent takes over what an older one left (docs/upgrade.md). */
#ifndef LAYOUT_VERSION
#define LAYOUT_VERSION 1
#endif

/* The tests have the same sources compiled with a field more here and there: another layout to migrate to. */
#ifdef TEST_LAYOUT
#define TEST_FIELD(type) type test_field;
#else
#define TEST_FIELD(type)
#endif

/* The tests have the same sources compiled for a node of a few pods: what happens when it is full. */
#ifdef TEST_SMALL
#define MAX_ENDPOINTS 4
#define MAX_SOURCES 10
#else
#define MAX_ENDPOINTS 16384
#define MAX_SOURCES 65536 /* addresses over all endpoints */
#endif
#define MAX_INSTANCES 256
#define MAX_LISTENERS (MAX_INSTANCES * SLOTS_PER_INSTANCE)
#define MAX_FLOWS 262144
#define MAX_UDP_PORTS 1024
#define MAX_OBSERVED 65536
#define MAX_SELECTIONS 4096
#define MAX_PORT_PAGES 16384
#define MAX_CIDRS 131072
#define PORT_PAGES 256
#define PORTS_OF_PAGE 256
#define CIDR_SETS 2 /* the node's and the pod's */
#define MAX_VERDICTS 32
#define EVENT_BYTES (1 << 20)

/* An IPv4 address stands in its IPv4-mapped IPv6 form (RFC 4291, 2.5.5.2). */
struct address {
    __u8 bytes[16];
};

/* What the agent asks the objects for, before it looks at anything that is pinned. */
enum layout {
    LAYOUT = LAYOUT_VERSION,
};

enum direction {
    DIRECTION_EGRESS = 0,
    DIRECTION_INGRESS = 1,
    DIRECTION_EXPLICIT = 2, /* of a flow: as egress, to the proxy's own address, and left to the stack */
};

enum endpoint_flag {
    ENDPOINT_FAILURE_OPEN = 1 << 0,  /* no listener: let the connection through instead of resetting it */
    ENDPOINT_BRIDGED = 1 << 1,       /* the interface is a bridge port: steer by way of bridge_ifindex */
    ENDPOINT_SINCE_BIRTH = 1 << 2,   /* enrolled before the pod's first process: no connection of it can be older */
    ENDPOINT_DROP_OTHER = 1 << 3,    /* what is not TCP is dropped, but for what an address needs and `udp_ports` */
    ENDPOINT_SHAPED = 1 << 4,        /* what comes after us at this hook limits the pod's rate: it has to see all */
    ENDPOINT_INBOUND = 1 << 5,       /* what the pod receives is intercepted as well */
    ENDPOINT_LEAVING = 1 << 6,       /* taken out: its open connections go on by the proxy, nothing else is touched */
    ENDPOINT_CLOSING = 1 << 7,       /* about to end: new connections to it are refused, open ones go on */
    ENDPOINT_SELECTIVE = 1 << 8,     /* `selected` says which of its flows are intercepted, and by whose listeners */
    ENDPOINT_OBSERVED = 1 << 9,      /* nothing new is intercepted: what would become of it is counted and told */
    ENDPOINT_UDP_OUTBOUND = 1 << 10, /* `udp_selected` says which datagrams that it sends are intercepted */
    ENDPOINT_UDP_INBOUND = 1 << 11,  /* and which that it is sent */
};

/* endpoints: host-side ifindex -> struct endpoint */
struct endpoint {
    __u32 id; /* never reused while anything refers to it; 0 is nobody */
    TEST_FIELD(__u32)
    __u32 generation; /* grows each time the pod is enrolled anew */
    __u32 instance;
    __u32 flags; /* enum endpoint_flag */
    __u32 bridge_ifindex;
};

/* sources: the addresses that may stand as source in what an interface sends -> 1 */
struct source_key {
    __u32 ifindex;
    struct address address;
};

/* inbound: an address of a pod that is intercepted inbound -> the ifindex of its endpoint */

/* selected, udp_selected: the ifindex of an endpoint -> the number of its selection, of TCP and of UDP */

/* selections: number -> which new flows are intercepted. A row does not change while an endpoint has it: another choice
 * is another row, so that all of it changes over at once. What refers to a row that is missing selects. */
struct choice {
    __u16 pages[PORT_PAGES]; /* by the upper half of the destination port: a number of `port_pages` */
    __u32 cidrs[CIDR_SETS];  /* sets of `cidrs` that the far address has to pass, each; 0: none */
    __u32 included;          /* bit n: what cidrs[n] does not include is left alone */
};

struct selection {
    struct choice by_direction[2]; /* enum direction */
};

/* port_pages: number -> what becomes of flows to 256 ports that follow each other */
struct port_page {
    __u16 ports[PORTS_OF_PAGE]; /* enum selected, or that and the number of an instance */
};

enum selected {
    SELECTED_NOT = 0,
    SELECTED = 1,          /* by the endpoint's own instance */
    SELECTED_INSTANCE = 2, /* and the number of another one */
};

/* cidrs (LPM trie): a set's number and a prefix -> enum cidr_flag of that prefix and of all around it in the set. The
 * far address: the destination of what a pod sends, the source of what it is sent. */
struct cidr_key {
    __u32 prefix_length; /* in bits of what follows */
    __u32 set;
    struct address address;
};

enum cidr_flag {
    CIDR_EXCLUDED = 1,
    CIDR_INCLUDED = 2,
};

/* workloads: endpoint id -> the pod it stands for, so that a restarted agent finds its ids again */
struct workload {
    char uid[64]; /* NUL-padded */
    TEST_FIELD(__u32)
    __u32 generation;
    __u32 ifindex;
};

/* identities: endpoint id -> who the pod is, as a proxy is told by getsockopt(2). `end` but for what is of the flow. */
struct identity {
    struct nodesentry_end end;
    char id[NODESENTRY_SPIFFE_MAX]; /* its SPIFFE ID */
    __u32 id_length;                /* 0: not confirmed, or it has none */
};

enum identity_version {
    IDENTITY_VERSION = NODESENTRY_VERSION,
};

/* addresses: of enrolled pods, each of one pod alone -> its endpoint id */

/* node: one row */
struct node {
    __u64 netns_cookie; /* of the network namespace that the agent works in; 0: the kernel does not tell */
};

/* instances: number, which endpoints and flows refer to -> whose it is. Never given to another name while any of them
 * does. */
struct instance {
    char name[64]; /* NUL-padded */
};

/* generations: an instance's number -> who takes its new flows, where that is not simply its own listeners. One row, so
 * that all of an instance's new flows change over at once. */
struct generation {
    __u32 serving; /* the number whose listeners take them */
    __u32 canary;  /* the number that takes a share of them; counts while `share` is not 0 and it has a listener */
    __u32 share;   /* of SHARE_WHOLE */
    __u32 resting; /* 1: nobody takes them, its failure policy is what they meet */
};

/* instance_counts (per CPU): an instance's number -> what has become of flows at its listeners */
struct instance_count {
    __u64 started;
    __u64 reset; /* by the proxy; counted while the agent watches for it */
};

/* lifecycle: one row. A port at which the agent answers what a pod asks it, and what the kubelet asks a pod. */
struct lifecycle {
    __u32 instance; /* whose listeners are the agent's own */
    __u16 port;     /* in host byte order; 0: none */
    __u8 pad[2];
};

/* listeners, udp_listeners (SOCKMAP): instance * SLOTS_PER_INSTANCE, plus those of these that hold -> a listening
 * socket, an unconnected one of UDP */
enum slot {
    SLOT_IPV6 = 1,
    SLOT_INBOUND = 2,
    SLOTS_PER_INSTANCE = 4,
};

/* flows: as the initiator sent the first packet -> who sent it. Ports in host byte order. */
struct flow_key {
    struct address src;
    struct address dst;
    __u16 sport;
    __u16 dport;
    __u8 protocol; /* IPPROTO_TCP or IPPROTO_UDP */
    __u8 pad[3];
};

struct flow {
    TEST_FIELD(__u64)
    __u64 started_ns; /* CLOCK_MONOTONIC */
    __u32 endpoint;
    __u32 generation;
    __u32 ifindex;
    __u32 instance;
    __u8 direction; /* enum direction */
    __u8 pad[3];
    __u32 seen_s; /* of UDP: CLOCK_MONOTONIC of its last datagram, in seconds; stands where there was padding before */
};

/* steering: one row. The agent's own interface, at whose ingress a socket can be assigned to what is on its way to a
 * pod. */
struct steering {
    __u32 ifindex; /* 0: there is none */
};

/* connections (socket storage): the record of a flow at the proxy's socket for it, where no other flow can push it out
 * and which it does not outlive. Written by the first packet that finds the socket. */
struct connection {
    struct flow flow;
    __u64 refreshed; /* in jiffies: when `flows` was last seen to know it as well */
};

/* skb->priority, which pods cannot set: what a program tells the nftables table about a packet. */
enum priority {
    PRIORITY_LEFT_TO_CONNTRACK = 0x4e530001,
    PRIORITY_LEFT_TO_LOOKUP = 0x4e530002, /* marked, without a socket: the kernel's own look-up finds it */
};

/* shares: endpoint id -> how many flows it has had recorded; turns: which flow was the nth, modulo
 * MAX_FLOWS_OF_ENDPOINT. An endpoint that has had its share loses its own oldest record for each new one. */
enum limit {
    MAX_FLOWS_OF_ENDPOINT = 16384, /* a power of two */
    SHARE_WHOLE = 1 << 16,
    /* No pod's: by a row of `flows` that bears it, a connection of the agent's own comes to a listener. */
    AGENT_ENDPOINT = 0x7fffffff,
    UDP_IDLE_S = 120, /* a flow on which nothing was said for so long is over */
};

struct share {
    struct bpf_spin_lock lock; /* kernels before 5.12 have no atomic addition that returns what was there */
    __u32 recorded;
};

struct turn {
    __u32 endpoint;
    __u32 number;
};

/* proxy_ports, udp_proxy_ports: where proxies of this node listen for what is intercepted -> 1; in host byte order */

/* explicit_ports: where proxies of this node are dialled by pods themselves -> the number of the instance; in host byte
 * order */

/* proxy_cgroups: a cgroup of version 2 in which one instance alone has its listeners -> that instance's number */

/* udp_ports: destination ports that stay open where other protocols are closed -> 1; in host byte order */

/* settings: one row, written by the agent */
struct settings {
    __u32 followed; /* somebody reads the events: otherwise none are sent */
};

/* observed: tuples of observed pods that somebody was told of -> 1 */

/* canaries, ingress_canaries: what the agent asks of one interface and family, and what our programs answered. A canary
 * is a SYN to port 0 of the loopback address, which no real packet is, with the nonce as its sequence number. One of
 * ingress comes in by our own interface, and has the pod's as its acknowledgement number: it is sent there, and comes
 * back. */
struct canary_key {
    __u32 ifindex;
    __u8 family; /* AF_INET or AF_INET6 */
    __u8 pad[3];
};

struct canary {
    __u32 nonce;
    __u32 answered; /* 0, or the nonce that arrived */
    __u32 endpoint;
    __u32 generation;
    __u32 instance;
    __u32 listening; /* 1: the instance has a listener for this family */
};

/* What came of giving a canary to the listener, tried before it was dropped. */
enum delivery {
    DELIVERY_UNTRIED,
    DELIVERY_NO_LISTENER, /* the failure policy is what such a flow meets */
    DELIVERY_ASSIGNED,
    DELIVERY_LOOKED_UP, /* no socket can be assigned; the kernel's look-up finds the listener */
    DELIVERY_MISLED,    /* no socket can be assigned, and the look-up finds another one or none */
    DELIVERY_REFUSED,   /* the kernel refuses the socket for another reason: `error` */
};

/* deliveries, ingress_deliveries: by canary_key */
struct delivery_trial {
    __u32 nonce;
    __u32 outcome; /* enum delivery */
    __u32 error;   /* a positive errno, or 0 */
};

/* Why a packet met the end that it met; also the index into struct counters. */
enum verdict {
    VERDICT_FLOW_STARTED,      /* a SYN, or the first datagram of a flow, was assigned to the listener */
    VERDICT_FLOW_PACKET,       /* a later packet was assigned to its socket, a later datagram to the listener */
    VERDICT_SYN_COOKIE,        /* no socket, but a known flow: left to the listener (SYN cookie, or its reset) */
    VERDICT_OLDER_CONNECTION,  /* passed: open since before the enrolment */
    VERDICT_NOT_TCP,           /* passed */
    VERDICT_NOT_IP,            /* passed: ARP and the like */
    VERDICT_NO_LISTENER_OPEN,  /* passed: failure policy open */
    VERDICT_NO_LISTENER_RESET, /* reset, or answered "port unreachable": failure policy closed */
    VERDICT_SPOOFED_SOURCE,    /* dropped: the source address is not the endpoint's */
    VERDICT_FRAGMENT,          /* dropped: a TCP fragment could hide a SYN, one of UDP the port that is named */
    VERDICT_MALFORMED,         /* dropped: lengths do not fit */
    VERDICT_VLAN,              /* dropped: TCP behind a VLAN tag other than a priority tag */
    VERDICT_EXTENSION_HEADERS, /* dropped: more IPv6 extension headers than are parsed */
    VERDICT_ASSIGN_FAILED,     /* dropped: the kernel refused the socket */
    VERDICT_STEER_LOST,        /* dropped: was to be given its socket elsewhere, and none was found there */
    VERDICT_NO_ENDPOINT,       /* passed: a program is attached, the endpoint is gone */
    VERDICT_EVENT_LOST,        /* an event found the ring full; the packet was not affected */
    VERDICT_LEFT_TO_CONNTRACK, /* passed: of a pod enrolled since its birth, so it can only answer somebody else */
    VERDICT_OTHER_DROPPED,     /* dropped: not TCP, of a pod whose other protocols are closed */
    VERDICT_LOOPBACK,          /* dropped: a connection to a loopback address, which would be the node's */
    VERDICT_FROM_NODE,         /* passed: to the pod from the node itself, be it a probe or a proxy's leg to the pod */
    VERDICT_NOT_OURS,          /* passed: to an address that is not the endpoint's, as a bridge floods */
    VERDICT_LEAVING,           /* passed: of a pod that has been taken out, and of no connection at the proxy */
    VERDICT_PROXY_PORT,        /* reset: to a proxy's own port on this node, or to a pod's port for hooks */
    VERDICT_CANARY,            /* the agent's own packet, to try the way to the listener */
    VERDICT_LIFECYCLE,         /* of a pod, or for it from the kubelet: to the agent's own port for that */
    VERDICT_CLOSING,           /* reset: to a pod that is about to end */
    VERDICT_EXCLUDED,          /* passed: not among the flows that are intercepted */
    VERDICT_OBSERVED,          /* passed: of a pod that is only observed, and nothing would become of it */
    VERDICT_WOULD_INTERCEPT,   /* passed: the same, a first packet that would be assigned */
    VERDICT_WOULD_REFUSE,      /* passed: the same, one that would be dropped or reset */
    VERDICT_EXPLICIT,          /* passed: the pod dials its node's proxy by itself; recorded */
    VERDICT_COUNT,
};

/* counters, ingress_counters (per CPU): endpoint id -> packets by verdict, of what the pod sends and of what it is
 * sent; id 0 for packets that belong to no endpoint */
struct counters {
    __u64 packets[MAX_VERDICTS];
};

/* events (ring buffer): flow starts, and the first packets that were refused, while somebody follows them */
struct event {
    __u64 time_ns; /* CLOCK_MONOTONIC */
    struct flow_key key;
    __u32 endpoint;
    __u32 generation;
    __u32 ifindex;
    __u32 instance;
    __u8 direction; /* enum direction */
    __u8 verdict;   /* enum verdict */
    __u8 pad[6];
};
