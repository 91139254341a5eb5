/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Finding the socket that a packet belongs to, and giving the packet to it. */
#pragma once

#include <linux/pkt_cls.h>

#include "maps.h"
#include "parse.h"

#define ESOCKTNOSUPPORT 94

/* Set by the agent before loading. */
const volatile __u32 mark_value = 0x40;
const volatile __u32 mark_mask = 0x40;

static __always_inline void set_mark(struct __sk_buff *skb) {
    skb->mark = (skb->mark & ~mark_mask) | mark_value;
}

/* Whatever socket the kernel's look-up finds for the packet. Release it. */
static __always_inline struct bpf_sock *any_socket(struct __sk_buff *skb, const struct flow_key *key, __u8 family) {
    struct bpf_sock_tuple tuple = {};

    if (family == AF_INET) {
        __builtin_memcpy(&tuple.ipv4.saddr, &key->src.bytes[12], 4);
        __builtin_memcpy(&tuple.ipv4.daddr, &key->dst.bytes[12], 4);
        tuple.ipv4.sport = bpf_htons(key->sport);
        tuple.ipv4.dport = bpf_htons(key->dport);
        return bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
    }
    __builtin_memcpy(&tuple.ipv6.saddr, &key->src, 16);
    __builtin_memcpy(&tuple.ipv6.daddr, &key->dst, 16);
    tuple.ipv6.sport = bpf_htons(key->sport);
    tuple.ipv6.dport = bpf_htons(key->dport);
    return bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
}

/* The connection's own socket, be it a request, established or in TIME_WAIT; never a listener. Release it. */
static __always_inline struct bpf_sock *connection_socket(struct __sk_buff *skb, const struct flow_key *key,
                                                          __u8 family) {
    struct bpf_sock *sk = any_socket(skb, key, family);

    if (!sk)
        return NULL;
    if (sk->state == BPF_TCP_LISTEN) {
        bpf_sk_release(sk);
        return NULL;
    }
    return sk;
}

static __always_inline __u32 slot_of(__u32 instance, enum direction direction, __u8 family) {
    return instance * SLOTS_PER_INSTANCE + (direction == DIRECTION_INGRESS ? SLOT_INBOUND : 0) +
           (family == AF_INET6 ? SLOT_IPV6 : 0);
}

/* The listener of an instance. Release it. */
static __always_inline struct bpf_sock *listener_socket(__u32 instance, enum direction direction, __u8 family) {
    __u32 slot = slot_of(instance, direction, family);

    return bpf_map_lookup_elem(&listeners, &slot);
}

/* The same of UDP. */
static __always_inline struct bpf_sock *udp_listener_socket(__u32 instance, enum direction direction, __u8 family) {
    __u32 slot = slot_of(instance, direction, family);

    return bpf_map_lookup_elem(&udp_listeners, &slot);
}

static __always_inline struct bpf_sock *listener_of(bool udp, __u32 instance, enum direction direction, __u8 family) {
    return udp ? udp_listener_socket(instance, direction, family) : listener_socket(instance, direction, family);
}

/* Whether this is the port at which the agent itself answers, and in `instance` whose listeners are there. */
static __always_inline bool is_lifecycle(__u16 port, __u32 *instance) {
    __u32 row = 0;
    struct lifecycle *own = bpf_map_lookup_elem(&lifecycle, &row);

    if (!own || !own->port || own->port != port)
        return false;
    *instance = own->instance;
    return true;
}

/* The listener that takes a new flow of an instance, and in `instance` the number that it belongs to. Release it. */
static __always_inline struct bpf_sock *serving_socket(__u32 *instance, enum direction direction, __u8 family) {
    struct generation *generation = bpf_map_lookup_elem(&generations, instance);
    struct bpf_sock *listener;

    if (!generation)
        return listener_socket(*instance, direction, family);
    if (generation->share && (bpf_get_prandom_u32() & (SHARE_WHOLE - 1)) < generation->share) {
        listener = listener_socket(generation->canary, direction, family);
        if (listener) {
            *instance = generation->canary;
            return listener;
        }
    }
    if (generation->resting)
        return NULL;
    *instance = generation->serving;
    return listener_socket(generation->serving, direction, family);
}

/* The same of UDP, where an instance has one listener whichever generation of it serves. */
static __always_inline struct bpf_sock *serving_udp_socket(__u32 instance, enum direction direction, __u8 family) {
    struct generation *generation = bpf_map_lookup_elem(&generations, &instance);

    return generation && generation->resting ? NULL : udp_listener_socket(instance, direction, family);
}

/* Marked without a socket: for established connections the kernel's own look-up finds it, for a first packet the
 * sk_lookup program names the listener that the record names. The priority says so to the nftables table, which lets
 * such a packet reach nothing but a transparent socket (docs/datapath.md, "Left to look-up"). */
static __always_inline void leave_to_lookup(struct __sk_buff *skb) {
    set_mark(skb);
    skb->priority = PRIORITY_LEFT_TO_LOOKUP;
}

/* Takes the reference on `sk`. Before Linux 6.6 no socket with SO_REUSEPORT can be assigned, and those that its
 * listener accepts have it too. False where the kernel refuses for another reason: then there is no mark either, for a
 * marked packet without a socket would reach any wildcard listener of the node (docs/datapath.md, "Who relies on
 * whom"). */
static __always_inline bool give(struct __sk_buff *skb, struct bpf_sock *sk) {
    long error = bpf_sk_assign(skb, sk, 0);

    bpf_sk_release(sk);
    if (error == -ESOCKTNOSUPPORT) {
        leave_to_lookup(skb);
        return true;
    }
    if (error)
        return false;
    set_mark(skb);
    return true;
}
