/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Who started which flow: written at its first packet, kept at its socket, told to who follows (docs/datapath.md,
 * "Where a flow is recorded"). */
#pragma once

#include "sockets.h"

#ifndef DIRECTION
#error "a program defines the direction that it sees as DIRECTION"
#endif

#define TURNS_PASSED_OVER 3
#define REFRESH_JIFFIES 1024 /* one to ten seconds */

static __always_inline void count(__u32 endpoint_id, enum verdict verdict) {
    count_in(DIRECTION, endpoint_id, verdict);
}

static __always_inline bool is_followed(void) {
    __u32 row = 0;
    struct settings *settings_row = bpf_map_lookup_elem(&settings, &row);

    return settings_row && settings_row->followed;
}

static __always_inline void report(const struct packet *packet, const struct endpoint *endpoint, __u32 instance,
                                   __u32 ifindex, enum verdict verdict) {
    struct event *event;

    if (!is_followed())
        return;
    event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
    if (!event) {
        count(endpoint->id, VERDICT_EVENT_LOST);
        return;
    }
    __builtin_memset(event, 0, sizeof(*event));
    event->time_ns = bpf_ktime_get_ns();
    event->key = packet->key;
    event->endpoint = endpoint->id;
    event->generation = endpoint->generation;
    event->ifindex = ifindex;
    event->instance = instance;
    event->direction = DIRECTION;
    event->verdict = verdict;
    /* The reader looks by itself every few milliseconds: it is woken only where that may be too late. */
    bpf_ringbuf_submit(event, bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) < EVENT_BYTES / 4 ? BPF_RB_NO_WAKEUP
                                                                                              : BPF_RB_FORCE_WAKEUP);
}

static __always_inline bool is_established(struct __sk_buff *skb, const struct flow_key *key) {
    struct bpf_sock *sk;
    bool established;

    if (key->protocol != IPPROTO_TCP)
        return false;
    sk = connection_socket(skb, key, is_mapped(&key->src) ? AF_INET : AF_INET6);
    if (!sk)
        return false;
    established = sk->state == BPF_TCP_ESTABLISHED;
    bpf_sk_release(sk);
    return established;
}

/* Gives the flow a turn of its endpoint, whose former holder goes: an endpoint that opens ever more connections pushes
 * out its own records and nobody else's. Established ones are passed over, a few at a time. */
static __always_inline void take_turn(struct __sk_buff *skb, const struct flow_key *key, __u32 endpoint_id) {
    struct share *share = bpf_map_lookup_elem(&shares, &endpoint_id);
    struct turn turn = {.endpoint = endpoint_id};
    struct flow_key *holder;

    if (!share) {
        struct share none = {};

        bpf_map_update_elem(&shares, &endpoint_id, &none, BPF_NOEXIST);
        share = bpf_map_lookup_elem(&shares, &endpoint_id);
        if (!share)
            return;
    }
    for (int i = 0; i < TURNS_PASSED_OVER + 1; i++) {
        bpf_spin_lock(&share->lock);
        turn.number = share->recorded++ % MAX_FLOWS_OF_ENDPOINT;
        bpf_spin_unlock(&share->lock);
        holder = bpf_map_lookup_elem(&turns, &turn);
        if (!holder) {
            bpf_map_update_elem(&turns, &turn, key, BPF_ANY);
            return;
        }
        if (i == TURNS_PASSED_OVER || !is_established(skb, holder)) {
            bpf_map_delete_elem(&flows, holder);
            *holder = *key;
            return;
        }
    }
}

static __always_inline void remember(struct __sk_buff *skb, const struct flow_key *key, const struct flow *flow) {
    struct flow *before = bpf_map_lookup_elem(&flows, key);

    if (before && before->endpoint == flow->endpoint) {
        *before = *flow; /* the same 4-tuple again: it has had its turn */
        return;
    }
    take_turn(skb, key, flow->endpoint);
    bpf_map_update_elem(&flows, key, flow, BPF_ANY);
}

/* `instance`: whose listener has it. */
static __always_inline void record_as(struct __sk_buff *skb, const struct packet *packet,
                                      const struct endpoint *endpoint, __u32 instance, enum direction direction,
                                      enum verdict verdict) {
    struct flow flow = {
        .started_ns = bpf_ktime_get_ns(),
        .endpoint = endpoint->id,
        .generation = endpoint->generation,
        .ifindex = packet->ifindex,
        .instance = instance,
        .direction = direction,
        .seen_s = packet->key.protocol == IPPROTO_UDP ? now_s() : 0,
    };

    struct instance_count *counted = bpf_map_lookup_elem(&instance_counts, &instance);

    if (counted)
        counted->started++;
    remember(skb, &packet->key, &flow);
    report(packet, endpoint, instance, packet->ifindex, verdict);
}

static __always_inline void record(struct __sk_buff *skb, const struct packet *packet, const struct endpoint *endpoint,
                                   __u32 instance) {
    record_as(skb, packet, endpoint, instance, DIRECTION, VERDICT_FLOW_STARTED);
}

/* The record of a flow of this endpoint's; NULL where it has none. */
static __always_inline const struct flow *known_flow(const struct packet *packet, const struct endpoint *endpoint) {
    struct flow *flow = bpf_map_lookup_elem(&flows, &packet->key);

    return flow && started_by(flow, endpoint) ? flow : NULL;
}

/* The same of a packet whose socket was found: its record is there, as soon as it is a whole socket. A connection that
 * is in use keeps its row in `flows` as well, for those who look it up there. */
static __always_inline const struct flow *known_at(struct __sk_buff *skb, struct bpf_sock *sk,
                                                   const struct packet *packet, const struct endpoint *endpoint) {
    struct connection *connection = bpf_sk_storage_get(&connections, sk, NULL, 0);
    struct connection fresh = {};
    struct flow *flow;

    if (connection) {
        if (!started_by(&connection->flow, endpoint))
            return NULL;
        if (bpf_jiffies64() - connection->refreshed > REFRESH_JIFFIES) {
            connection->refreshed = bpf_jiffies64();
            if (!bpf_map_lookup_elem(&flows, &packet->key))
                remember(skb, &packet->key, &connection->flow);
        }
        return &connection->flow;
    }
    flow = bpf_map_lookup_elem(&flows, &packet->key);
    if (!flow || !started_by(flow, endpoint))
        return NULL;
    fresh.flow = *flow;
    fresh.refreshed = bpf_jiffies64();
    bpf_sk_storage_get(&connections, sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE);
    return flow;
}
