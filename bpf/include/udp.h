/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The ports of a datagram, which parse() leaves out. */
#pragma once

#include <linux/udp.h>

#include "sockets.h"

/* Fills in the ports; false for what has none that can be seen. */
static __always_inline bool parse_udp(struct __sk_buff *skb, struct packet *packet) {
    struct udphdr udp;

    if (packet->tagged || packet->fragment || bpf_skb_load_bytes(skb, packet->l4, &udp, sizeof(udp)) ||
        bpf_ntohs(udp.len) < sizeof(udp))
        return false;
    packet->key.sport = bpf_ntohs(udp.source);
    packet->key.dport = bpf_ntohs(udp.dest);
    return true;
}

static __always_inline bool is_udp(const struct packet *packet, int parsed) {
    return parsed == VERDICT_NOT_TCP && packet->key.protocol == IPPROTO_UDP;
}
