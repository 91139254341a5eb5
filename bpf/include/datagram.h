/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* UDP to ports that are named: each datagram goes to the listener, whatever its place in the flow (docs/udp.md). */
#pragma once

#include "select.h"
#include "udp.h"
#include "unreachable.h"

/* Why a datagram of a pod whose ports are looked at cannot be: it may be to one that is named. */
static __always_inline enum verdict unseen(const struct packet *packet) {
    if (packet->fragment)
        return VERDICT_FRAGMENT;
    return packet->tagged ? VERDICT_VLAN : VERDICT_MALFORMED;
}

/* The record of a flow of this endpoint's on which something was said lately. */
static __always_inline struct flow *live_flow(const struct packet *packet, const struct endpoint *endpoint) {
    struct flow *flow = bpf_map_lookup_elem(&flows, &packet->key);

    return flow && started_by(flow, endpoint) && !is_idle(flow) ? flow : NULL;
}

/* Once a second, so that the processors of a busy flow do not write the same line by turns. */
static __always_inline void touch(struct flow *flow) {
    __u32 now = now_s();

    if (flow->seen_s != now)
        flow->seen_s = now;
}

static __always_inline bool is_datagram_selected(const struct packet *packet, const struct endpoint *endpoint,
                                                 __u32 *instance) {
    __u32 ifindex = packet->ifindex;

    *instance = endpoint->instance;
    return selects(bpf_map_lookup_elem(&udp_selected, &ifindex), packet, instance);
}

/* Told to who follows, and answered. */
static __always_inline int refuse(struct __sk_buff *skb, const struct packet *packet, const struct endpoint *endpoint,
                                  __u32 instance, enum verdict verdict) {
    report(packet, endpoint, instance, packet->ifindex, verdict);
    return unreachable(skb, packet, endpoint, verdict);
}

/* Of an observed pod: told once of each tuple, for no datagram says that it is the first. */
static __always_inline int observe_datagram(const struct packet *packet, const struct endpoint *endpoint) {
    const __u8 present = 1;
    struct bpf_sock *listener;
    enum verdict verdict = VERDICT_WOULD_INTERCEPT;
    __u32 instance;

    if (!is_datagram_selected(packet, endpoint, &instance))
        return pass(endpoint, VERDICT_OBSERVED);
    listener = serving_udp_socket(instance, DIRECTION, packet->family);
    if (listener)
        bpf_sk_release(listener);
    else
        verdict = endpoint->flags & ENDPOINT_FAILURE_OPEN ? VERDICT_OBSERVED : VERDICT_WOULD_REFUSE;
    if (is_followed() && !bpf_map_update_elem(&observed, &packet->key, &present, BPF_NOEXIST))
        report(packet, endpoint, instance, packet->ifindex, verdict);
    return pass(endpoint, verdict);
}
