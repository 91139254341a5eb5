/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Of a pod that is only observed: what would become of its flows is counted and told, and every packet passes. */
#pragma once

#include "select.h"

/* A first packet, told each time. */
static __always_inline int observe_first(const struct packet *packet, const struct endpoint *endpoint, __u32 instance,
                                         enum verdict verdict) {
    const __u8 present = 1;

    if (is_followed())
        bpf_map_update_elem(&observed, &packet->key, &present, BPF_ANY);
    report(packet, endpoint, instance, packet->ifindex, verdict);
    return pass(endpoint, verdict);
}

/* Any other, told once: while somebody follows it is one of a connection that was open before. */
static __always_inline int observe_later(const struct packet *packet, const struct endpoint *endpoint) {
    const __u8 present = 1;

    if (is_followed() && !bpf_map_update_elem(&observed, &packet->key, &present, BPF_NOEXIST))
        report(packet, endpoint, endpoint->instance, packet->ifindex, VERDICT_OBSERVED);
    return pass(endpoint, VERDICT_OBSERVED);
}

static __always_inline int observe_start(const struct packet *packet, const struct endpoint *endpoint) {
    __u32 instance;

    if (!is_selected(packet, endpoint, &instance))
        return observe_first(packet, endpoint, instance, VERDICT_EXCLUDED);
    if (has_listener(&instance, packet->family))
        return observe_first(packet, endpoint, instance, VERDICT_WOULD_INTERCEPT);
    return observe_first(packet, endpoint, instance,
                         endpoint->flags & ENDPOINT_FAILURE_OPEN ? VERDICT_OBSERVED : VERDICT_WOULD_REFUSE);
}
