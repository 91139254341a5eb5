/** What is compared with what: each of these stands by itself, and is a part of the report. */

import type { Setting } from './stand.js';
import type { VariantName } from './variants.js';
import { QUICK_WORKLOADS, WORKLOADS, type Workload } from './workloads.js';

export interface SectionPlan extends Setting {
  readonly name: string;
  readonly title: string;
  readonly variants: readonly VariantName[];
  readonly workloads: readonly Workload[];
  /** Of the rounds that were asked for. */
  readonly share: number;
}

const ALL: readonly VariantName[] = [
  'explicit',
  'direct',
  'ours',
  'splice',
  'iptables-tproxy',
  'nftables-tproxy',
  'redirect',
];
const PODS: readonly VariantName[] = ['explicit', 'pods-1', 'pods-10', 'pods-100', 'pods-1000'];
const FLOWS: readonly VariantName[] = ['explicit', 'flows-10', 'flows-10000', 'flows-100000'];
/** Emulated, a microVM is too slow for a rate that another pod keeps up with. */
const WITHOUT_RATE = QUICK_WORKLOADS.filter(({ kind }) => kind !== 'paced');

const some = { workloads: QUICK_WORKLOADS, share: 0.6 } as const;

export const SECTIONS: readonly SectionPlan[] = [
  {
    name: 'haproxy-runc',
    title: 'HAProxy, runc',
    proxy: 'HAProxy',
    runtime: 'runc',
    variants: ALL,
    workloads: WORKLOADS,
    share: 1,
  },
  { name: 'envoy-runc', title: 'Envoy, runc', proxy: 'Envoy', runtime: 'runc', variants: ALL, ...some },
  {
    name: 'haproxy-gvisor',
    title: 'HAProxy, gVisor',
    proxy: 'HAProxy',
    runtime: 'runsc',
    variants: ALL,
    ...some,
    workloads: WITHOUT_RATE,
  },
  {
    name: 'haproxy-microvm',
    title: 'HAProxy, microVM (emulated)',
    proxy: 'HAProxy',
    runtime: 'rund',
    variants: ALL,
    ...some,
    workloads: WITHOUT_RATE,
  },
  { name: 'pods', title: 'Many enrolled pods', proxy: 'HAProxy', runtime: 'runc', variants: PODS, ...some },
  { name: 'flows', title: 'Many open flows', proxy: 'HAProxy', runtime: 'runc', variants: FLOWS, ...some },
];
