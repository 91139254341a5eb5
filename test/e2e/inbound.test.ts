/** What a user of the node would notice of what pods receive: without a listener, when pods come and go, when parts are gone. */

import { appendFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { u32 } from '../../src/kernel/struct.js';
import { BpfMap } from '../../src/native/bpf.js';
import { type Daemon, inNetns, runIn, tryRun, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { REMOTE } from '../lab/lab.js';
import { patient } from '../lab/patience.js';
import { hostIndexOf, type PlainPod } from '../lab/plain.js';
import { type LabPod, reply } from '../lab/pod.js';
import { BOTH_WAYS, INBOUND_WORDS, useScene } from './scene.js';

const FAMILIES = [4, 6] as const;
type Family = (typeof FAMILIES)[number];
const PORT = 80;
/** A reset, not a silence. */
const AT_ONCE_MS = patient(200);
const FAR = { 4: '10.199.0.2', 6: 'fd00:199::2' } as const;
const NODE = { 4: '10.199.0.1', 6: 'fd00:199::1' } as const;

const scene = useScene({
  pods: [{ name: 'routed' }, { name: 'bridged', topology: 'bridge' }],
  inbound: true,
});
const PODS = ['routed', 'bridged'] as const;

beforeAll(async () => {
  for (const name of PODS) {
    expect(reply(await scene.pod(name).app(['server', String(PORT)]))).toMatchObject({ serving: true });
  }
});

const dial = async (ip: string, port = PORT, netns = scene.lab.remote) =>
  reply(await tryRun(...inNetns(netns, await buildApp(), ['dial', ip, String(port)])));

/** Whom the pod has at the other end. */
const peerOf = (dialled: Record<string, unknown>) =>
  (dialled.server as { peer: string } | undefined)?.peer ?? '';

const isFrom = (peer: string, ip: string) => peer.startsWith(ip.includes(':') ? `[${ip}]:` : `${ip}:`);

describe.each(PODS)('a %s pod', (name) => {
  const pod = (): LabPod => scene.pod(name);

  describe('without an inbound listener', () => {
    afterEach(async () => {
      await scene.proxy.stop();
      scene.agent.writeConfig({ interception: {} });
      await scene.agent.stop();
      await scene.agent.start();
      await scene.proxy.start(...INBOUND_WORDS);
      await scene.agent.adopted(4);
      await scene.agent.reaches(name, 'INTERCEPTED');
    });

    it.each(FAMILIES)('and closed: a client over IPv%i is reset at once', async (family) => {
      await scene.proxy.stop();
      await scene.agent.adopted(0);
      const dialled = await dial(pod().ips[family]);
      expect(dialled).toMatchObject({ ok: false, failed: 'connect', error: 'ECONNREFUSED' });
      expect(Number(dialled.ms)).toBeLessThan(AT_ONCE_MS);
      expect((await scene.agent.received(name)).NO_LISTENER_RESET).toBeGreaterThan(0);
    });

    it('and open: a client reaches the pod itself', async () => {
      scene.agent.writeConfig({ interception: { failure: 'open' } });
      await scene.agent.stop();
      await scene.agent.start();
      await scene.proxy.stop();
      await scene.agent.adopted(0);
      for (const family of FAMILIES) {
        const dialled = await dial(pod().ips[family]);
        expect(dialled).toMatchObject({ ok: true });
        expect(isFrom(peerOf(dialled), FAR[family])).toBe(true);
      }
    });
  });

  it('whose instance has no inbound listener is intercepted outbound only, and that is said', async () => {
    scene.agent.writeConfig({ instances: [{ name: 'default', outbound: BOTH_WAYS.outbound }] });
    await scene.agent.stop();
    await scene.agent.start();
    await scene.agent.reaches(name, 'INTERCEPTED');
    const dialled = await dial(pod().ips[4]);
    expect(isFrom(peerOf(dialled), FAR[4])).toBe(true);
    expect((await scene.agent.workload(name))?.interception.directions).toBe('outbound only');
    expect((await scene.agent.cli('status')).stdout).toContain('outbound only');
    expect((await scene.agent.cli('pods')).stdout).toContain('outbound only');
    await waitFor(
      'our own interface to be gone',
      async () => !(await runIn(scene.lab.node, 'ip', ['link'])).includes('nodesentry0'),
    );
    scene.agent.writeConfig({});
    await scene.agent.stop();
    await scene.agent.start();
    await scene.agent.adopted(4);
    await scene.agent.reaches(name, 'INTERCEPTED');
    expect((await scene.agent.workload(name))?.interception.directions).toBe('both');
  });

  it.each(FAMILIES)(
    'that dials a port of a proxy on the node over IPv%i is refused, and counted',
    async (family: Family) => {
      const before = await scene.agent.packets(name);
      for (const port of [15_001, 15_006]) {
        expect(reply(await pod().app(['dial', NODE[family], String(port)]))).toMatchObject({
          ok: false,
          error: 'ECONNREFUSED',
        });
      }
      const after = await scene.agent.packets(name);
      expect((after.PROXY_PORT ?? 0) - (before.PROXY_PORT ?? 0)).toBe(2);
    },
  );

  describe('that comes and goes', () => {
    const enrol = (enrolled: boolean) => scene.describe(pod(), enrolled ? {} : { labels: { app: name } });

    it('resets nothing in either direction: what is open goes on as it was, what is new follows the new state', async () => {
      enrol(false);
      await scene.agent.reaches(name, 'NOT_ENROLLED');
      const before = await Promise.all([Held.open(scene.lab.remote, pod().ips[4]), Held.openFrom(pod())]);
      enrol(true);
      await scene.agent.reaches(name, 'INTERCEPTED');
      const during = await Promise.all([Held.open(scene.lab.remote, pod().ips[4]), Held.openFrom(pod())]);
      for (const held of [...before, ...during]) {
        await held.ask();
      }
      expect(isFrom(peerOf(await dial(pod().ips[4])), FAR[4])).toBe(false);
      enrol(false);
      await scene.agent.reaches(name, 'NOT_ENROLLED');
      for (const held of [...before, ...during]) {
        await held.ask();
      }
      const [direct, out] = [await dial(pod().ips[4]), reply(await pod().app(['dial', REMOTE[4], '80']))];
      expect(isFrom(peerOf(direct), FAR[4])).toBe(true);
      expect(isFrom(peerOf(out), pod().ips[4])).toBe(true);
      // Back again, while they are still open.
      enrol(true);
      await scene.agent.reaches(name, 'INTERCEPTED');
      for (const held of [...before, ...during]) {
        await held.ask();
        await held.close();
      }
      enrol(false);
      await scene.agent.reaches(name, 'NOT_ENROLLED');
      await waitFor(
        'its programs to go with its last connection at the proxy',
        async () => !scene.agent.endpoints().includes(indexOf()),
        90_000,
      );
      enrol(true);
      await scene.agent.reaches(name, 'INTERCEPTED');
    });
  });

  describe('what is taken away is put back, and no open connection fails', () => {
    const tampering: Readonly<Record<string, () => Promise<unknown>>> = {
      'our own interface deleted': () => runIn(scene.lab.node, 'ip', ['link', 'del', 'nodesentry0']),
      'our own interface set down': () => runIn(scene.lab.node, 'ip', ['link', 'set', 'nodesentry0', 'down']),
      'its address taken away': () =>
        runIn(scene.lab.node, 'ip', ['addr', 'flush', 'dev', 'nodesentry0', 'scope', 'host']),
      'its reverse-path check turned on': () =>
        runIn(scene.lab.node, 'sysctl', ['-qw', 'net.ipv4.conf.nodesentry0.rp_filter=1']),
      'the pin of the program at the pod removed': async () =>
        rmSync(join(scene.agent.bpffs, `v1/links/ingress-${indexOf()}`), { force: true }),
      'where connections are steered to': async () => setRow(scene.agent.bpffs, 'steering', 0),
      'the addresses that are sent to': async () => clear(scene.agent.bpffs, 'inbound'),
    };

    it.each(Object.keys(tampering))('%s', async (what) => {
      const held = await Held.open(scene.lab.remote, pod().ips[4]);
      const repairs = async () =>
        Object.values((await scene.agent.client.status()).repairs).reduce((sum, count) => sum + count, 0);
      const before = await repairs();
      await tampering[what]?.();
      await waitFor('the repair', async () => (await repairs()) > before, patient(2_500));
      await held.ask();
      await held.close();
      await scene.agent.reaches(name, 'INTERCEPTED');
      const dialled = await dial(pod().ips[4]);
      expect(dialled).toMatchObject({ ok: true });
      expect(isFrom(peerOf(dialled), FAR[4])).toBe(false);
    });
  });

  const indexOf = () => hostIndex.get(name) ?? 0;
});

const hostIndex = new Map<string, number>();

beforeAll(async () => {
  for (const name of PODS) {
    hostIndex.set(name, await hostIndexOf((scene.pod(name) as PlainPod).netnsName));
  }
});

function withMap<T>(bpffs: string, name: string, use: (map: BpfMap) => T): T {
  const map = BpfMap.openPinned(join(bpffs, 'v1/maps', name));
  try {
    return use(map);
  } finally {
    map.close();
  }
}

const setRow = (bpffs: string, name: string, value: number) =>
  withMap(bpffs, name, (map) => map.set(u32(0), u32(value)));

const clear = (bpffs: string, name: string) =>
  withMap(bpffs, name, (map) => {
    for (const [key] of map.entries()) {
      map.delete(key);
    }
  });

/** A connection that stays open, by which a request is made when it is asked for. */
class Held {
  static #count = 0;
  #asked = 0;

  private constructor(
    private readonly daemon: Daemon,
    private readonly control: string,
  ) {}

  static openFrom(pod: LabPod): Promise<Held> {
    return Held.open((pod as PlainPod).netnsName, REMOTE[4]);
  }

  static async open(netns: string, ip: string): Promise<Held> {
    Held.#count += 1;
    const name = `held-${Held.#count}`;
    const control = join(scene.lab.directory, `${name}.control`);
    writeFileSync(control, '');
    const words = ['hold', ip, String(PORT), control];
    const daemon = scene.lab.daemon(netns, name, await buildApp(), words);
    await daemon.logged(/"localPort"/);
    const held = new Held(daemon, control);
    await held.ask();
    return held;
  }

  async ask(): Promise<void> {
    appendFileSync(this.control, '.');
    await this.daemon.logged(new RegExp(`"request":${this.#asked},`));
    this.#asked += 1;
    expect(this.daemon.log()).not.toContain('"ok":false');
  }

  close(): Promise<void> {
    return this.daemon.stop();
  }
}
