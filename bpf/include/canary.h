/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Whether the listener would get a packet that stands here: tried with a canary, which is dropped after it. */
#pragma once

#include "sockets.h"

/* Whether the kernel's own look-up finds the listener at `port` for this packet, were its flow recorded. */
static __always_inline bool is_looked_up(struct __sk_buff *skb, const struct packet *packet,
                                         const struct endpoint *endpoint, __u32 instance, __u32 ifindex, __u32 port) {
    struct flow flow = {
        .endpoint = endpoint->id,
        .generation = endpoint->generation,
        .ifindex = ifindex,
        .instance = instance,
        .direction = DIRECTION,
    };
    struct bpf_sock *sk;
    bool found;

    if (bpf_map_update_elem(&flows, &packet->key, &flow, BPF_ANY))
        return false;
    sk = any_socket(skb, &packet->key, packet->family);
    bpf_map_delete_elem(&flows, &packet->key);
    if (!sk)
        return false;
    found = sk->state == BPF_TCP_LISTEN && sk->src_port == port;
    bpf_sk_release(sk);
    return found;
}

/* Gives the canary to the listener, as the first packet of a flow of the interface's. */
static __always_inline void try_delivery(struct __sk_buff *skb, const struct packet *packet,
                                         const struct endpoint *endpoint, __u32 ifindex, bool can_assign,
                                         struct delivery_trial *trial) {
    __u32 instance = endpoint->instance;
    struct bpf_sock *listener = serving_socket(&instance, DIRECTION, packet->family);
    __u32 port;
    long error;

    if (!listener) {
        trial->outcome = DELIVERY_NO_LISTENER;
        return;
    }
    port = listener->src_port;
    error = can_assign ? bpf_sk_assign(skb, listener, 0) : -ESOCKTNOSUPPORT;
    bpf_sk_release(listener);
    trial->error = -error;
    if (!error)
        trial->outcome = DELIVERY_ASSIGNED;
    else if (error == -ESOCKTNOSUPPORT)
        trial->outcome =
            is_looked_up(skb, packet, endpoint, instance, ifindex, port) ? DELIVERY_LOOKED_UP : DELIVERY_MISLED;
    else
        trial->outcome = DELIVERY_REFUSED;
}
