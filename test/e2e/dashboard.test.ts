/**
 * The dashboard's queries, answered by a real Prometheus that has scraped a real agent with traffic, and drawn by Chromium.
 * With DASHBOARD_PICTURE=path the picture is kept there.
 */

import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { panelsOf, readDashboard, substituted } from '../dashboard/dashboard.js';
import { type Drawn, type Named, page } from '../dashboard/draw.js';
import { Prometheus, type Range } from '../dashboard/prometheus.js';
import { inNetns, runIn, tryRun, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { REMOTE } from '../lab/lab.js';
import { NamespacePods } from '../lab/namespaces.js';
import type { PlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { BOTH_WAYS, INBOUND_WORDS, useScene } from './scene.js';

const METRICS = '127.0.0.1:9464';
const SECONDS = 36;
const STANDING = 12;
const RATE_INTERVAL = '8s';
const SIZE = { width: 1440, height: 1_560 };

/** Panels that show nothing here, and why. */
const EMPTY: Readonly<Record<string, string>> = {
  'Age of the sources': 'there is no API server, so no Kubernetes source',
  'Sources listed or watched anew': 'there is no API server, so no Kubernetes source',
};

const dashboard = readDashboard();
const panels = panelsOf(dashboard);
const scene = useScene({
  pods: [{ name: 'web' }, { name: 'shop' }],
  inbound: true,
  agent: { sources: { cni: {} } },
  startAgent: async ({ agent }) => {
    agent.writeConfig({ metrics: { listen: METRICS }, instances: [BOTH_WAYS] });
    await agent.start();
  },
});
let drawn: Drawn[];
let range: Range;

beforeAll(async () => {
  const prometheus = await Prometheus.start(scene.lab, METRICS);
  const seen = (query: string) => async () => {
    const now = Date.now() / 1_000;
    return (await prometheus.range(query, { from: now - 2, to: now })).length > 0 || undefined;
  };
  await waitFor('the first scrape', seen('nodesentry_build_info'));
  const from = Date.now() / 1_000;
  await load(from + SECONDS);
  range = { from, to: Date.now() / 1_000 };
  drawn = [];
  for (const panel of panels) {
    const series: Named[] = [];
    for (const { expr, legendFormat } of panel.targets) {
      const found = await prometheus.range(substituted(expr, RATE_INTERVAL), range);
      const nameOf = (labels: Named['labels']) =>
        legendFormat.replaceAll(/\{\{(\w+)\}\}/g, (_, label: string) => labels[label] ?? '');
      series.push(...found.map((each) => ({ ...each, name: nameOf(each.labels) })));
    }
    drawn.push({ panel, series });
  }
}, 150_000);

/** What a node sees in a day, in less than a minute: traffic, pods that start, wrong questions, a proxy and a rule away. */
async function load(until: number): Promise<void> {
  const running = () => Date.now() / 1_000 < until;
  const socket = join(scene.agent.runDir, 'cni.sock');
  const pods = new NamespacePods(scene.lab, {
    socket,
    annotations: { 'nodesentry.io/intercept': 'enabled' },
  });
  const app = await buildApp();
  const names = ['web', 'shop'];
  const dials = names.map(async (name) => {
    while (running()) {
      await scene.pod(name).app(['connects', REMOTE[4], '80', '40', '5000']);
      const { localPort } = reply(await scene.pod(name).app(['dial', REMOTE[4], '80']));
      if (localPort !== undefined) {
        const src = { ip: scene.pod(name).ips[4], port: Number(localPort) };
        await scene.agent.client.resolve({ proto: 'tcp', src, dst: { ip: REMOTE[4], port: 80 } });
      }
    }
  });
  const dialled = names.map(async (name) => {
    const pod = scene.pod(name) as PlainPod;
    await scene.lab.daemon(pod.netnsName, `server-${name}`, app, ['serve', '8080']).logged(/"serving":true/);
    while (running()) {
      await tryRun(...inNetns(scene.lab.remote, app, ['connects', pod.ips[4], '8080', '20', '5000']));
    }
  });
  const starts = async () => {
    while (running()) {
      await pods.add();
      const [oldest] = pods.live();
      if (oldest !== undefined && pods.live().length > STANDING) {
        await pods.remove(oldest);
      }
    }
  };
  const questions = async () => {
    const src = { ip: '10.66.99.99', port: 1 };
    while (running()) {
      await scene.agent.client.resolve({ proto: 'tcp', src, dst: src }).catch(() => undefined);
    }
  };
  const troubles = async () => {
    await waitFor(
      'a third of the time',
      () => Date.now() / 1_000 > until - SECONDS * 0.6 || undefined,
      60_000,
    );
    await scene.proxy.stop();
    await runIn(scene.lab.node, 'ip', ['rule', 'del', 'pref', '90']);
    await scene.addPlain('late');
    await waitFor('two thirds', () => Date.now() / 1_000 > until - SECONDS * 0.4 || undefined, 60_000);
    await scene.proxy.start(...INBOUND_WORDS);
  };
  await Promise.all([...dials, ...dialled, starts(), questions(), troubles()]);
}

describe('a panel', () => {
  it.each(panels.map(({ title }) => title))('has data: %s', (title) => {
    const { series = [] } = drawn.find(({ panel }) => panel.title === title) ?? {};
    const values = series.flatMap(({ points }) => points.map(([, value]) => value)).filter(Number.isFinite);
    expect(values.length > 0).toBe(EMPTY[title] === undefined);
  });

  it.each<[string, string, (most: number) => boolean]>([
    ['Pods by state', 'INTERCEPTED', (most) => most >= 3],
    ['Late pods', 'node-a', (most) => most > 0],
    ['Connections taken over', 'egress', (most) => most > 1],
    ['Connections taken over', 'ingress', (most) => most > 1],
    ['Resets and drops', 'NO_LISTENER_RESET', (most) => most > 1],
    ['Questions answered', 'DATAPATH_RECORDED', (most) => most > 1],
    ['Questions refused', 'WORKLOAD_NOT_FOUND', (most) => most > 1],
    ['Repairs', 'policy-route', (most) => most > 0],
    ['Memory of the agent', 'node-a', (most) => most > 20 << 20 && most < 1 << 30],
    ['Processor of the agent', 'node-a', (most) => most > 0 && most < 2],
  ])('tells what has happened: %s, %s', (title, name, expected) => {
    const { series = [] } = drawn.find(({ panel }) => panel.title === title) ?? {};
    const points = series.find((each) => each.name === name)?.points ?? [];
    const most = Math.max(...points.map(([, value]) => value).filter(Number.isFinite));
    expect([series.map((each) => each.name), most, expected(most)]).toEqual([expect.anything(), most, true]);
  });
});

it('Chromium makes a picture of it', async () => {
  const { directory } = scene.lab;
  const [html, png] = [join(directory, 'dashboard.html'), join(directory, 'dashboard.png')];
  writeFileSync(html, page(dashboard.title, drawn, range));
  const { code, stderr } = await tryRun('chromium', [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--hide-scrollbars',
    `--user-data-dir=${join(directory, 'chromium')}`,
    `--window-size=${SIZE.width},${SIZE.height}`,
    `--screenshot=${png}`,
    `file://${html}`,
  ]);
  expect([code, stderr]).toEqual([0, expect.stringContaining('written to file')]);
  const picture = readFileSync(png);
  // PNG specification, 11.2.2: width and height begin the first chunk.
  expect([picture.readUInt32BE(16), picture.readUInt32BE(20)]).toEqual([SIZE.width, SIZE.height]);
  const { DASHBOARD_PICTURE } = process.env;
  if (DASHBOARD_PICTURE !== undefined) {
    copyFileSync(png, DASHBOARD_PICTURE);
  }
});

it('an agent whose port is taken does not start, and says which', async () => {
  await scene.agent.stop();
  const [ip, port] = METRICS.split(':');
  const other = scene.lab.daemon(scene.lab.node, 'socat', 'socat', [
    '-dd',
    `TCP-LISTEN:${port},bind=${ip},reuseaddr,fork`,
    'PIPE',
  ]);
  await other.logged(/listening on/);
  await expect(scene.agent.start()).rejects.toThrow(
    `nodesentry: metrics.listen: ${METRICS} cannot be had: another process listens there; choose another address`,
  );
});
