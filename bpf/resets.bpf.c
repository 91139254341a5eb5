// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* count_reset: the resets that the node's own TCP sends, counted for the instance whose flow they end: a proxy that
 * refuses what it has accepted, or dies with it. Attached only while a new generation is tried. */
#include <linux/in6.h>

#include "maps.h"
#include "parse.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* The few fields of the kernel's own that are read; found by name in its BTF. */
struct sock_common {
    __be32 skc_daddr;
    __be32 skc_rcv_saddr;
    __be16 skc_dport;
    __u16 skc_num;
    unsigned short skc_family;
    struct in6_addr skc_v6_daddr;
    struct in6_addr skc_v6_rcv_saddr;
} __attribute__((preserve_access_index));

struct sock {
    struct sock_common __sk_common;
} __attribute__((preserve_access_index));

struct inet_sock {
    struct sock sk;
    __be16 inet_sport;
} __attribute__((preserve_access_index));

/* A socket that is being closed has given its port back already, and still bears it. */
static __always_inline __u16 own_port(struct sock *sk) {
    __be16 port = 0;

    if (sk->__sk_common.skc_num)
        return sk->__sk_common.skc_num;
    bpf_probe_read_kernel(&port, sizeof(port), &((struct inet_sock *)sk)->inet_sport);
    return bpf_ntohs(port);
}

SEC("tp_btf/tcp_send_reset")
int count_reset(__u64 *arguments) {
    struct sock *sk = (struct sock *)arguments[0];
    struct flow_key key = {.protocol = IPPROTO_TCP};
    struct instance_count *counted;
    struct flow *flow;
    __u32 instance;

    if (!sk)
        return 0;
    /* The socket is the proxy's: its peer is whoever began the flow, its own address where that wanted to go. */
    if (sk->__sk_common.skc_family == AF_INET) {
        map_v4(&key.src, sk->__sk_common.skc_daddr);
        map_v4(&key.dst, sk->__sk_common.skc_rcv_saddr);
    } else {
        bpf_probe_read_kernel(&key.src, sizeof(key.src), &sk->__sk_common.skc_v6_daddr);
        bpf_probe_read_kernel(&key.dst, sizeof(key.dst), &sk->__sk_common.skc_v6_rcv_saddr);
    }
    key.sport = bpf_ntohs(sk->__sk_common.skc_dport);
    key.dport = own_port(sk);
    flow = bpf_map_lookup_elem(&flows, &key);
    if (!flow)
        return 0;
    instance = flow->instance;
    counted = bpf_map_lookup_elem(&instance_counts, &instance);
    if (counted)
        counted->reset++;
    return 0;
}
