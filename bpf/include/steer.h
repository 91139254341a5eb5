/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Where a redirected packet is given its socket. It bears our mark, and if it starts a connection its flow is recorded
 * in `flows`; it lacks only the socket, which the redirect scrubbed (docs/datapath.md, "Who relies on whom"). */
#pragma once

#include "udp.h"

#define PACKET_HOST 0

static __always_inline bool is_marked(const struct __sk_buff *skb) {
    return (skb->mark & mark_mask) == mark_value;
}

static __always_inline int steer(struct __sk_buff *skb, enum direction direction) {
    struct packet packet = {};
    struct bpf_sock *sk = NULL;
    struct flow *flow;
    __u32 endpoint_id = 0;
    int parsed = parse(skb, &packet);
    bool udp = is_udp(&packet, parsed);

    /* Still addressed to the MAC of whoever was next on its way. */
    if (!(parsed == PARSED_TCP || (udp && parse_udp(skb, &packet))) || bpf_skb_change_type(skb, PACKET_HOST))
        goto lost;
    if (!udp)
        sk = connection_socket(skb, &packet.key, packet.family);
    if (!sk) {
        flow = bpf_map_lookup_elem(&flows, &packet.key);
        if (!flow)
            goto lost;
        endpoint_id = flow->endpoint;
        sk = listener_of(udp, flow->instance, flow->direction, packet.family);
    }
    if (!sk)
        goto lost;
    if (!give(skb, sk)) {
        count_in(direction, endpoint_id, VERDICT_ASSIGN_FAILED);
        return TC_ACT_SHOT;
    }
    return TC_ACT_OK;

lost:
    count_in(direction, endpoint_id, VERDICT_STEER_LOST);
    return TC_ACT_SHOT;
}
