/** The service of ours in IPVS; ipvsadm stands for itself by its rules, as 1.31 prints them. The real one: test/e2e/ipvs.test.ts. */

import { describe, expect, it } from 'vitest';
import { DatapathError } from '../../src/kernel/errors.js';
import { IpvsBypass, markServices } from '../../src/kernel/ipvs.js';

const MARK = { value: 64, mask: 64 };

class Ipvsadm {
  /** By `-f MARK[ -6]`: destinations as `-r` has them, with their weights. */
  readonly services = new Map<string, { address: string; weight: string }[]>();
  readonly said: string[] = [];

  readonly command = async (args: readonly string[]): Promise<string> => {
    this.said.push(args.join(' '));
    const [verb] = args;
    if (verb === '--save') {
      return [...this.services]
        .flatMap(([key, destinations]) => [
          `-A ${key} -s rr`,
          ...destinations.map(({ address, weight }) => `-a ${key} -r ${address} -g -w ${weight}`),
        ])
        .join('\n');
    }
    const mark = args[args.indexOf('-f') + 1];
    const key = `-f ${mark}${args.includes('-6') ? ' -6' : ''}`;
    const service = this.services.get(key);
    if (verb === '-A') {
      this.services.set(key, []);
    } else if (service === undefined) {
      throw new DatapathError('IPVS_FAILED', `ipvsadm ${args.join(' ')}: No such service`);
    } else if (verb === '-D') {
      this.services.delete(key);
    } else if (verb === '-a') {
      service.push({
        address: args[args.indexOf('-r') + 1] ?? '',
        weight: args[args.indexOf('-w') + 1] ?? '',
      });
    } else {
      const lines = service.map(
        ({ address, weight }) => `  -> ${address.padEnd(28)} Route   ${weight}  0          0         `,
      );
      return `Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\nFWM  ${mark} rr\n${lines.join('\n')}\n`;
    }
    return '';
  };
}

function bypass(isPresent = true) {
  const ipvsadm = new Ipvsadm();
  return { ipvsadm, bypass: new IpvsBypass(MARK, { command: ipvsadm.command, isPresent: () => isPresent }) };
}

it('asks for nothing where the kernel has no IPVS', async () => {
  const { ipvsadm, bypass: none } = bypass(false);
  expect(await none.ensure([4, 6])).toEqual([]);
  expect(ipvsadm.said).toEqual([]);
});

it('puts a service in place for each family, and then only looks', async () => {
  const { ipvsadm, bypass: ours } = bypass();
  expect(await ours.ensure([4, 6])).toEqual(['IPVS service for IPv4', 'IPVS service for IPv6']);
  expect(Object.fromEntries(ipvsadm.services)).toEqual({
    '-f 64': [{ address: '127.0.0.1:0', weight: '20051' }],
    '-f 64 -6': [{ address: '[::1]:0', weight: '20051' }],
  });
  ipvsadm.said.length = 0;
  expect(await ours.ensure([4, 6])).toEqual([]);
  expect(ipvsadm.said).toEqual(['-L -n -f 64', '-L -n -f 64 -6']);
});

describe('what somebody did to it is undone', () => {
  it.each([
    ['deleted', (ipvsadm: Ipvsadm) => void ipvsadm.services.delete('-f 64')],
    ['its destination deleted', (ipvsadm: Ipvsadm) => void ipvsadm.services.set('-f 64', [])],
  ])('%s', async (_what, tamper) => {
    const { ipvsadm, bypass: ours } = bypass();
    await ours.ensure([4]);
    const before = Object.fromEntries(ipvsadm.services);
    tamper(ipvsadm);
    expect(await ours.ensure([4])).toEqual(['IPVS service for IPv4']);
    expect(Object.fromEntries(ipvsadm.services)).toEqual(before);
  });
});

it('a service of somebody else for the same mark is a conflict, and stays', async () => {
  const { ipvsadm, bypass: ours } = bypass();
  ipvsadm.services.set('-f 64', [{ address: '192.0.2.1:0', weight: '1' }]);
  await expect(ours.ensure([4])).rejects.toMatchObject({
    code: 'IPVS_CONFLICT',
    message: expect.stringContaining('interception.mark'),
  });
  expect(ipvsadm.services.get('-f 64')).toEqual([{ address: '192.0.2.1:0', weight: '1' }]);
});

it('takes away what an agent with another mark has left, and nothing else', async () => {
  const { ipvsadm, bypass: ours } = bypass();
  ipvsadm.services.set('-f 128', [{ address: '127.0.0.1:0', weight: '20051' }]);
  ipvsadm.services.set('-f 256', [{ address: '192.0.2.1:0', weight: '1' }]);
  expect(await ours.ensure([4])).toEqual(['stale IPVS service for IPv4 removed', 'IPVS service for IPv4']);
  expect([...ipvsadm.services.keys()]).toEqual(['-f 256', '-f 64']);
});

it('knows services by what ipvsadm saves', () => {
  const saved = `-A -t 10.96.0.10:80 -s rr
-a -t 10.96.0.10:80 -r 10.1.1.1:8080 -m -w 1
-A -f 64 -s rr
-a -f 64 -r 127.0.0.1:0 -g -w 20051
-A -f 64 -6 -s rr
-a -f 64 -6 -r [::1]:0 -g -w 20051
-A -f 65 -s rr
-A -f 66 -s rr
-a -f 66 -r 127.0.0.1:0 -g -w 20051
-a -f 66 -r 192.0.2.1:0 -g -w 1
`;
  expect(markServices(saved)).toEqual([
    { family: 4, mark: 64, isOurs: true },
    { family: 6, mark: 64, isOurs: true },
    { family: 4, mark: 65, isOurs: false },
    { family: 4, mark: 66, isOurs: false },
  ]);
});
