/** What is put into the kernel for a pod, and what is told of it. The kernel is a stand-in that a test spoils. */

import { beforeEach, describe, expect, test } from 'vitest';
import type { BpfProgram } from '../../src/native/bpf.js';
import { EndpointInstaller } from '../../src/reconcile/endpoint-installer.js';
import { StartingPods } from '../../src/reconcile/starting-pods.js';
import {
  bridged,
  decision,
  identityOf,
  KernelStandIn,
  kernelError,
  link,
  PROGRAMS,
  recordingLog,
  routed,
} from './reconcile-fixture.js';

const WEB = decision(0, routed(100));
const { uid } = WEB.pod;
const BRIDGE = link(7, 'cni0', { kind: 'bridge' });
const BRIDGED = decision(0, bridged(100, BRIDGE));
const ANOTHER = { id: 99 } as unknown as BpfProgram;

let kernel: KernelStandIn;
let log: ReturnType<typeof recordingLog>;
let installer: EndpointInstaller;
let starting: StartingPods;

beforeEach(() => {
  kernel = new KernelStandIn();
  log = recordingLog();
  const { tables, attachments, sysctls } = kernel;
  const programs = { programs: PROGRAMS };
  starting = new StartingPods();
  installer = new EndpointInstaller({
    programs,
    tables,
    attachments,
    sysctls,
    starting,
    identityOf,
    claimants: () => 1,
    repairs: kernel,
    log,
  });
});

test('a pod is enrolled since its birth where it has no process yet', async () => {
  starting.add(WEB.pod.uid, 0);
  expect(await installer.install(WEB)).toMatchObject({ row: { sinceBirth: true } });
});

describe('a pod that has just come', () => {
  test('is written, then attached, then read back', async () => {
    const installed = await installer.install(WEB);
    expect(kernel.take()).toEqual([
      'enrol uid-web-0 at 100',
      'sysctl 100',
      'write 100',
      'attach egress 100',
      'verify 100',
      'look at egress 100',
    ]);
    const row = { uid, id: 1, generation: 1, ifindex: 100, sinceBirth: false };
    expect(installed).toEqual({ decision: WEB, row, missing: undefined, changed: true });
    expect(installer.get(uid)).toBe(installed);
  });

  test('is told of once, and is no repair', async () => {
    kernel.sysctlsWrong.add(100);
    await installer.install(WEB);
    await installer.install(WEB);
    expect(kernel.repairs).toEqual([]);
    expect(log.info.mock.calls).toEqual([
      [
        expect.objectContaining({ pod: 'default/web-0', interface: 'veth100', endpoint: 1 }),
        'pod programmed',
      ],
    ]);
  });

  test('behind a bridge gets no packet by the bridge before it is steered there', async () => {
    await installer.install(BRIDGED);
    expect(kernel.take()).toEqual([
      'enrol uid-web-0 at 100',
      'sysctl 7',
      'write 100',
      'attach steer 7',
      'attach egress 100',
      'verify 100',
      'look at egress 100',
      'look at steer 7',
    ]);
  });

  test('is put in place at each of its interfaces', async () => {
    const installed = await installer.install(decision(0, routed(100), routed(200)));
    expect(installed).toMatchObject({ missing: undefined, row: { ifindex: 100 } });
    expect([...kernel.endpoints.keys()]).toEqual([100, 200]);
    expect([...kernel.attached.keys()]).toEqual(['egress 100', 'egress 200']);
  });
});

describe('a pod that is looked at again', () => {
  test('and is as it should be has not changed, and is not read back', async () => {
    const { row } = await installer.install(WEB);
    kernel.take();
    // Another decision that says the same.
    const again = decision(0, routed(100));
    expect(await installer.install(again)).toEqual({
      decision: again,
      row,
      missing: undefined,
      changed: false,
    });
    expect(kernel.take()).toEqual(['enrol uid-web-0 at 100', 'sysctl 100', 'write 100', 'attach egress 100']);
  });

  test.each([
    {
      lost: 'its endpoint',
      spoil: () => kernel.endpoints.delete(100),
      repair: ['map', 'the endpoint was missing'],
    },
    {
      lost: 'its program',
      spoil: () => kernel.attached.delete('egress 100'),
      repair: ['attachment', 'the program at veth100 was gone'],
    },
    {
      lost: 'its program to another',
      spoil: () => kernel.attached.set('egress 100', ANOTHER),
      repair: ['attachment', 'the program at veth100 was of another build'],
    },
  ])('and has lost $lost is repaired, read back and counted as such', async ({ spoil, repair }) => {
    await installer.install(WEB);
    spoil();
    kernel.take();
    expect(await installer.install(WEB)).toMatchObject({ changed: true, missing: undefined });
    expect(kernel.repairs).toEqual([repair]);
    expect(kernel.take()).toEqual(expect.arrayContaining(['verify 100', 'look at egress 100']));
    expect(kernel.attached.get('egress 100')).toBe(PROGRAMS.pod_egress);
    expect(log.info).toHaveBeenCalledTimes(1); // when it came
  });

  test('and has lost the sysctl of its interface, or of its bridge, is repaired', async () => {
    await installer.install(WEB);
    kernel.sysctlsWrong.add(100);
    expect(await installer.install(WEB)).toMatchObject({ changed: false });
    expect(kernel.repairs).toEqual([['sysctl', 'net.ipv4.conf.veth100.accept_local was 0']]);

    await installer.install(BRIDGED);
    kernel.sysctlsWrong.add(7);
    await installer.install(BRIDGED);
    expect(kernel.repairs.at(-1)).toEqual(['sysctl', 'net.ipv4.conf.cni0.accept_local was 0']);
  });

  test('and is not steered at its bridge any more is repaired', async () => {
    await installer.install(BRIDGED);
    kernel.attached.delete('steer 7');
    const installed = await installer.install(BRIDGED);
    expect(installed.changed).toBe(true); // so that it is proven anew
    expect(kernel.repairs).toEqual([['attachment', 'steering at cni0 was gone: attached']]);
    expect(kernel.attached.get('steer 7')).toBe(PROGRAMS.bridge_steer);
  });

  test.each([
    { another: 'another instance', next: decision(0, routed(100, { instance: 1 })) },
    { another: 'another failure policy', next: decision(0, routed(100, { failureOpen: true })) },
    { another: 'further addresses', next: decision(0, routed(100, { ips: ['10.66.0.1', 'fd00::1'] })) },
    { another: 'another interface', next: decision(0, routed(101)) },
    { another: 'a second interface', next: decision(0, routed(100), routed(101)) },
  ])('and has $another by now is changed, and no repair', async ({ next }) => {
    await installer.install(WEB);
    expect(await installer.install(next)).toMatchObject({ changed: true, missing: undefined });
    expect(kernel.repairs).toEqual([]);
  });
});

test('a pod whose row is another by now is written anew, and no repair', async () => {
  await installer.install(WEB);
  kernel.rows.set(uid, { uid, id: 1, generation: 4, ifindex: 555, sinceBirth: false });
  const installed = await installer.install(WEB);
  expect(installed).toMatchObject({ changed: true, missing: undefined, row: { generation: 5 } });
  expect(kernel.repairs).toEqual([]);
});

describe('a pod that cannot be put in place', () => {
  test('because its interface goes at that moment is told of, and is no error', async () => {
    kernel.failures.set('attach egress 100', kernelError('ENODEV', 19));
    const installed = await installer.install(WEB);
    expect(installed).toMatchObject({ missing: 'the kernel says ENODEV', row: { id: 1 } });
    expect(installer.get(uid)).toBe(installed);
    expect(log.error).not.toHaveBeenCalled();
    expect(log.info.mock.calls).toEqual([
      [{ pod: 'default/web-0', reason: 'the kernel says ENODEV' }, 'the interface of the pod has just gone'],
    ]);
  });

  test('is told of once as long as it fails alike, and again when it fails otherwise', async () => {
    const refused = kernelError('EPERM', 1);
    kernel.failures.set('attach egress 100', refused);
    expect((await installer.install(WEB)).missing).toBe('the kernel says EPERM');
    expect((await installer.install(WEB)).missing).toBe('the kernel says EPERM');
    const told = { pod: 'default/web-0', err: refused };
    expect(log.error.mock.calls).toEqual([[told, 'the pod could not be programmed']]);

    kernel.failures.set('attach egress 100', kernelError('ENOMEM', 12));
    expect((await installer.install(WEB)).missing).toBe('the kernel says ENOMEM');
    expect(log.error).toHaveBeenCalledTimes(2);

    kernel.failures.clear();
    expect((await installer.install(WEB)).missing).toBeUndefined();
    expect(log.error).toHaveBeenCalledTimes(2);
  });

  test('and then can is told of as one that has come, and is no repair', async () => {
    kernel.failures.set('attach egress 100', kernelError('EPERM', 1));
    await installer.install(WEB);
    kernel.failures.clear();
    await installer.install(WEB);
    expect(kernel.repairs).toEqual([]);
    expect(log.info.mock.calls.map(([, message]) => message)).toEqual(['pod programmed']);
  });

  test('stays so until it is read back, although nothing is left to write', async () => {
    const { verify } = kernel.tables;
    kernel.tables.verify = () => 'not in the kernel';
    expect((await installer.install(WEB)).missing).toBe('not in the kernel');
    expect(await installer.install(WEB)).toMatchObject({ missing: 'not in the kernel', changed: false });
    kernel.tables.verify = verify;
    expect((await installer.install(WEB)).missing).toBeUndefined();
  });

  test('for want of a row has none', async () => {
    kernel.failures.set('enrol uid-web-0 at 100', kernelError('E2BIG', 7));
    expect(await installer.install(WEB)).toMatchObject({ row: undefined, missing: 'the kernel says E2BIG' });
    expect(kernel.take()).toEqual(['enrol uid-web-0 at 100']);
  });

  test.each([
    {
      what: 'its endpoint',
      vanishes: () => kernel.endpoints.clear(),
      missing: 'not as programmed',
    },
    {
      what: 'its program',
      vanishes: () => kernel.attached.delete('egress 100'),
      missing: 'the program is not attached to veth100',
    },
    {
      what: 'the program of its bridge',
      vanishes: () => kernel.attached.delete('steer 7'),
      missing: 'the program is not attached to the bridge cni0',
    },
  ])('since $what is not there when it is read back says what is missing', async ({ vanishes, missing }) => {
    const { verify } = kernel.tables;
    kernel.tables.verify = (row, plan) => {
      vanishes();
      return verify(row, plan);
    };
    expect(await installer.install(BRIDGED)).toMatchObject({ missing, changed: true });
  });
});

test('what was reached for a pod is forgotten with it, or with all that are not wanted', async () => {
  const others = [1, 2].map((n) => decision(n, routed(100 + n)));
  const uids = [WEB, ...others].map(({ pod }) => pod.uid);
  for (const one of [WEB, ...others]) {
    await installer.install(one);
  }
  const known = () => uids.filter((candidate) => installer.get(candidate) !== undefined);
  expect(known()).toEqual(uids);
  installer.forget(uid);
  expect(known()).toEqual(uids.slice(1));
  installer.forgetAllBut(new Set(uids.slice(2)));
  expect(known()).toEqual(uids.slice(2));
});
