/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Which new flows are intercepted, and by which instance's listeners: four look-ups, however many ports and CIDRs are
 * named on the node (docs/selection.md). */
#pragma once

#include "endings.h"

/* The far address has to pass each set that counts. */
static __always_inline bool passes_cidrs(const struct choice *choice, const struct address *address) {
    struct cidr_key key = {.prefix_length = 8 * (sizeof(key) - sizeof(key.prefix_length)), .address = *address};

    for (int i = 0; i < CIDR_SETS; i++) {
        __u32 *found, flags;

        key.set = choice->cidrs[i];
        if (!key.set)
            continue;
        found = bpf_map_lookup_elem(&cidrs, &key);
        flags = found ? *found : 0;
        if (flags & CIDR_EXCLUDED || (choice->included & (1 << i) && !(flags & CIDR_INCLUDED)))
            return false;
    }
    return true;
}

/* Whether the selection of this number has the packet, and in `instance` whose listeners are to take it, where they are
 * not the endpoint's own. */
static __always_inline bool selects(const __u32 *number, const struct packet *packet, __u32 *instance) {
    struct selection *selection = number ? bpf_map_lookup_elem(&selections, number) : NULL;
    const struct choice *choice;
    struct port_page *ports;
    __u16 what = SELECTED;
    __u32 page;

    if (!selection)
        return true;
    choice = &selection->by_direction[DIRECTION];
    page = choice->pages[packet->key.dport >> 8];
    ports = bpf_map_lookup_elem(&port_pages, &page);
    if (ports)
        what = ports->ports[packet->key.dport & 0xff];
    if (what == SELECTED_NOT)
        return false;
    if (what >= SELECTED_INSTANCE)
        *instance = what - SELECTED_INSTANCE;
    return passes_cidrs(choice, DIRECTION == DIRECTION_EGRESS ? &packet->key.dst : &packet->key.src);
}

/* Whether a flow that starts with this packet is intercepted, and in `instance` whose listeners are to take it. */
static __always_inline bool is_selected(const struct packet *packet, const struct endpoint *endpoint, __u32 *instance) {
    __u32 ifindex = packet->ifindex;

    *instance = endpoint->instance;
    if (!(endpoint->flags & ENDPOINT_SELECTIVE))
        return true;
    return selects(bpf_map_lookup_elem(&selected, &ifindex), packet, instance);
}

/* From here on this tuple is an ordinary connection: an old record would make an orphan of it. */
static __always_inline int exclude(const struct packet *packet, const struct endpoint *endpoint, bool starts) {
    if (starts) {
        bpf_map_delete_elem(&flows, &packet->key);
        report(packet, endpoint, endpoint->instance, packet->ifindex, VERDICT_EXCLUDED);
    }
    return pass(endpoint, VERDICT_EXCLUDED);
}
