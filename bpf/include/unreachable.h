/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The answer to a datagram that nobody takes. */
#pragma once

#include "endings.h"

/* Of the packet that is answered: its headers and the eight bytes by which its sender knows which it was. */
#define QUOTED_OF_PAYLOAD 8
#define MAX_QUOTED 128
#define ANSWER_TTL 64
#define ICMP_UNREACHABLE 3
#define ICMP_PORT_UNREACHABLE 3
#define ICMPV6_UNREACHABLE 1
#define ICMPV6_PORT_UNREACHABLE 4

/* Of this error in both versions (RFC 792; RFC 4443, 3.1). linux/icmp.h includes what there is for no BPF program. */
struct icmp_error {
    __u8 type;
    __u8 code;
    __sum16 checksum;
    __be32 unused;
};

/* One's complement sum (RFC 1071); words of any width and order come to the same. */
static __always_inline __u64 sum_of(const void *bytes, int size) {
    const __u32 *words = bytes;
    __u64 sum = 0;

    for (int i = 0; i < size / 4; i++)
        sum += words[i];
    return sum;
}

static __always_inline __sum16 folded(__u64 sum) {
    for (int i = 0; i < 4; i++)
        sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}

static __always_inline bool is_multicast(const struct packet *packet) {
    const __u8 *bytes = packet->key.dst.bytes;

    return packet->family == AF_INET ? bytes[12] >= 224 : bytes[0] == 0xff;
}

/* Puts an ICMP error before what is quoted, which sums up to `sum`. */
static __always_inline bool put_error_v4(struct __sk_buff *skb, const struct packet *packet, __u32 quoted, __u64 sum) {
    struct {
        struct iphdr ip;
        struct icmp_error icmp;
    } error = {
        .ip = {.version = 4, .ihl = 5, .ttl = ANSWER_TTL, .protocol = IPPROTO_ICMP},
        .icmp = {.type = ICMP_UNREACHABLE, .code = ICMP_PORT_UNREACHABLE},
    };

    error.ip.tot_len = bpf_htons(sizeof(error) + quoted);
    __builtin_memcpy(&error.ip.saddr, &packet->key.dst.bytes[12], 4);
    __builtin_memcpy(&error.ip.daddr, &packet->key.src.bytes[12], 4);
    error.ip.check = folded(sum_of(&error.ip, sizeof(error.ip)));
    error.icmp.checksum = folded(sum + sum_of(&error.icmp, sizeof(error.icmp)));
    return !bpf_skb_adjust_room(skb, sizeof(error), BPF_ADJ_ROOM_MAC, 0) &&
           !bpf_skb_store_bytes(skb, packet->l3, &error, sizeof(error), BPF_F_RECOMPUTE_CSUM);
}

static __always_inline bool put_error_v6(struct __sk_buff *skb, const struct packet *packet, __u32 quoted, __u64 sum) {
    struct {
        struct ipv6hdr ip;
        struct icmp_error icmp;
    } error = {
        .ip = {.version = 6, .nexthdr = IPPROTO_ICMPV6, .hop_limit = ANSWER_TTL},
        .icmp = {.type = ICMPV6_UNREACHABLE, .code = ICMPV6_PORT_UNREACHABLE},
    };
    __u32 length = sizeof(error.icmp) + quoted;

    error.ip.payload_len = bpf_htons(length);
    __builtin_memcpy(&error.ip.saddr, &packet->key.dst, 16);
    __builtin_memcpy(&error.ip.daddr, &packet->key.src, 16);
    sum += sum_of(&error.ip.saddr, 32) + bpf_htonl(length) + bpf_htonl(IPPROTO_ICMPV6);
    error.icmp.checksum = folded(sum + sum_of(&error.icmp, sizeof(error.icmp)));
    return !bpf_skb_adjust_room(skb, sizeof(error), BPF_ADJ_ROOM_MAC, 0) &&
           !bpf_skb_store_bytes(skb, packet->l3, &error, sizeof(error), BPF_F_RECOMPUTE_CSUM);
}

/* Turns the datagram into the ICMP error "port unreachable" that answers it, and sends that back: to the pod, or as if
 * by the pod (RFC 1122, 3.2.2.1; RFC 4443, 3.1). */
static __always_inline int unreachable(struct __sk_buff *skb, const struct packet *packet,
                                       const struct endpoint *endpoint, enum verdict verdict) {
    struct {
        __u8 to[ETH_ALEN];
        __u8 from[ETH_ALEN];
    } mac, turned;
    __u32 quoted = packet->l4 - packet->l3 + QUOTED_OF_PAYLOAD;
    __u64 sum = 0;
    __u32 word;

    count(endpoint->id, verdict);
    if (is_multicast(packet) || quoted > MAX_QUOTED || bpf_skb_load_bytes(skb, 0, &mac, sizeof(mac)))
        return TC_ACT_SHOT;
    for (__u32 at = 0; at < MAX_QUOTED; at += sizeof(word)) {
        if (at >= quoted)
            break;
        if (bpf_skb_load_bytes(skb, packet->l3 + at, &word, sizeof(word)))
            return TC_ACT_SHOT;
        sum += word;
    }
    if (bpf_skb_change_tail(skb, packet->l3 + quoted, 0))
        return TC_ACT_SHOT;
    if (!(packet->family == AF_INET ? put_error_v4(skb, packet, quoted, sum) : put_error_v6(skb, packet, quoted, sum)))
        return TC_ACT_SHOT;
    __builtin_memcpy(turned.to, mac.from, ETH_ALEN);
    __builtin_memcpy(turned.from, mac.to, ETH_ALEN);
    bpf_skb_store_bytes(skb, 0, &turned, sizeof(turned), BPF_F_RECOMPUTE_CSUM);
    return bpf_redirect(packet->ifindex, DIRECTION == DIRECTION_INGRESS ? BPF_F_INGRESS : 0);
}
