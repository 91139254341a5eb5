// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* listening: wakes the agent when a TCP socket of its own network namespace begins to listen or stops. Which one it is
 * the agent finds out by looking; here it is only told that there is something to see. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Of the kernel's states of TCP, include/net/tcp_states.h. */
#define TCP_CLOSE 7
#define TCP_LISTEN 10
/* The smallest that a ring can be on pages of 64 KiB as well. */
#define RING_BYTES 65536

/* The few fields of the kernel's own that are read; found by name in its BTF. */
struct ns_common {
    unsigned int inum;
} __attribute__((preserve_access_index));

struct net {
    struct ns_common ns;
} __attribute__((preserve_access_index));

typedef struct {
    struct net *net;
} __attribute__((preserve_access_index)) possible_net_t;

struct sock_common {
    possible_net_t skc_net;
} __attribute__((preserve_access_index));

struct sock {
    struct sock_common __sk_common;
} __attribute__((preserve_access_index));

/* Inode number of the network namespace that is meant. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u32);
} listen_netns SEC(".maps");

/* Records of 4 bytes: the state that the socket goes to. One that finds no room needs none: the reader has been woken.
 */
struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, RING_BYTES);
} listen_events SEC(".maps");

SEC("tp_btf/inet_sock_set_state")
int listening(__u64 *arguments) {
    struct sock *sk = (struct sock *)arguments[0];
    int before = (int)arguments[1];
    int after = (int)arguments[2];
    __u32 row = 0;
    __u32 *netns;

    /* What a listener accepts is its copy, and goes from its state to another: no event for each connection. */
    if (after != TCP_LISTEN && !(before == TCP_LISTEN && after == TCP_CLOSE))
        return 0;
    netns = bpf_map_lookup_elem(&listen_netns, &row);
    if (!netns || sk->__sk_common.skc_net.net->ns.inum != *netns)
        return 0;
    bpf_ringbuf_output(&listen_events, &after, sizeof(after), 0);
    return 0;
}
