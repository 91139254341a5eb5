/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What only the splice has: its maps, and the few fields of the kernel's own that are read, found by name in its BTF.
 */
#pragma once

#include "maps.h"
#include "parse.h"

#include <bpf/bpf_core_read.h>
#include <linux/errno.h>

#define MAX_SPLICED 131072 /* sockets */
#define SPLICE_MAX_WAITING (4 << 20)

/* A leg of a flow: two sockets on this node. */
enum splice_leg {
    SPLICE_FROM_POD = 0, /* the pod's, and the one that its proxy accepted */
    SPLICE_TO_POD = 1,   /* the proxy's, and the one that the pod accepted */
};

struct splice_key {
    struct flow_key flow;
    __u8 leg;
    __u8 accepted; /* which end of it: the one that accepted, or the one that dialled */
    __u8 pad[2];
};

/* splice_ends (socket storage) */
struct splice_end {
    struct splice_key own;
    struct splice_key other;
    __u32 left_to_tcp; /* for good: who reads what it sends is slow */
};

/* splice_socks */
struct splice_sock {
    __u64 at;      /* where the kernel has it: to look at how far it has been read */
    __u64 waiting; /* spliced bytes are still to be read, as of the last run of splice_look */
};

struct splice_settings {
    __u32 enabled; /* 0: nothing is spliced any more; what has been can still be read */
};

struct splice_count {
    __u64 ends; /* sockets that were taken in */
    __u64 messages;
    __u64 bytes;
    __u64 left_to_tcp; /* messages of such sockets */
    __u64 held_back;   /* packets */
};

struct {
    __uint(type, BPF_MAP_TYPE_SOCKHASH);
    __uint(max_entries, MAX_SPLICED);
    __type(key, struct splice_key);
    __type(value, __u64);
} splice_sockets SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, MAX_SPLICED);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, struct splice_key);
    __type(value, struct splice_sock);
} splice_socks SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_SK_STORAGE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, int);
    __type(value, struct splice_end);
} splice_ends SEC(".maps");

/* The cookie of a spliced pod's network namespace -> the ifindex of its endpoint */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, MAX_ENDPOINTS);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, __u64);
    __type(value, __u32);
} splice_pods SEC(".maps");

/* Its ifindex -> 1 */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, MAX_ENDPOINTS);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, __u32);
    __type(value, __u8);
} splice_interfaces SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct splice_settings);
} splice_settings SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct splice_count);
} splice_counts SEC(".maps");

typedef struct {
    int counter;
} atomic_t;

struct sock {
    struct {
        atomic_t rmem_alloc;
        int len;
        void *head, *tail;
    } sk_backlog;
    void *sk_user_data;
} __attribute__((preserve_access_index));

struct list_head {
    struct list_head *next;
} __attribute__((preserve_access_index));

/* What makes a socket one of a sockmap. */
struct sk_psock {
    struct list_head ingress_msg;
} __attribute__((preserve_access_index));

struct tcp_sock {
    __u32 write_seq;
    __u32 copied_seq;
} __attribute__((preserve_access_index));
