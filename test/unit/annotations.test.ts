import { describe, expect, it } from 'vitest';
import { interceptionOf } from '../../src/pods/annotations.js';
import { SELECT_ALL } from '../../src/pods/selection.js';

const DEFAULTS = { enrol: 'labelled', failure: 'closed', other: 'pass' } as const;

function annotated(annotations: Record<string, string>) {
  return interceptionOf({ labels: {}, annotations }, DEFAULTS);
}

describe('a bad annotation is told in one line, and disables nothing else', () => {
  const ports = 'expected all, none or ports from 1 to 65535 such as 80,8000-8080';
  const cidrs = 'expected CIDRs such as 10.0.0.0/8,fd00::/8';

  it.each([
    ['outbound', '99999', ports],
    ['outbound', '0', ports],
    ['outbound', '80,', ports],
    ['inbound', 'http', ports],
    ['inbound', '90-80', ports],
    ['inbound', '1-2-3', ports],
    ['inbound', '', ports],
    ['exclude-outbound-cidrs', '10.0.0.0', cidrs],
    ['exclude-outbound-cidrs', '10.0.0.0/33', cidrs],
    ['exclude-outbound-cidrs', '10.0.0.0/8,fd00::/129', cidrs],
    ['exclude-outbound-cidrs', 'everything', cidrs],
    ['failure', 'ajar', 'expected closed or open'],
    ['intercept', 'yes', 'expected enabled or disabled'],
  ])('%s: %j', (key, value, expected) => {
    const others = key === 'intercept' ? {} : { 'nodesentry.io/intercept': 'enabled' };
    const policy = key === 'failure' ? {} : { 'nodesentry.io/failure': 'open' };
    const { enrolled, failure, problems } = annotated({
      ...others,
      ...policy,
      [`nodesentry.io/${key}`]: value,
    });
    expect(problems).toEqual([`nodesentry.io/${key}: ${expected}, got ${JSON.stringify(value)}`]);
    expect(enrolled).toBe(key !== 'intercept');
    expect(failure).toBe(key === 'failure' ? 'closed' : 'open');
  });
});

describe('which flows are intercepted', () => {
  it.each([
    ['outbound', '80,8000-8080'],
    ['inbound', 'none'],
    ['inbound', 'all'],
    ['exclude-outbound-cidrs', '10.0.0.0/8, fd00::/8'],
    ['include-inbound-cidrs', '10.0.0.0/8'],
  ])('%s: %j', (key, value) => {
    expect(annotated({ [`nodesentry.io/${key}`]: value }).problems).toEqual([]);
  });

  it('is everything where the pod says nothing, and what it says otherwise', () => {
    expect(annotated({}).selection).toBe(SELECT_ALL);
    expect(annotated({ 'nodesentry.io/outbound': '80' }).selection.outbound.ports).toEqual([
      { from: 80, to: 80 },
    ]);
  });
});
