import { configDefaults, defineConfig } from 'vitest/config';
import { missingParts } from './test/lab/kernel-parts.js';
import { patient } from './test/lab/patience.js';
import { FULL_SIZE } from './test/lab/size.js';

/** Their limits are times that a user is promised: nothing else may want the two cores meanwhile. */
const ALONE = [
  'test/e2e/behaviour.test.ts',
  'test/e2e/drift.test.ts',
  'test/e2e/held.test.ts',
  'test/e2e/proxy-reload.test.ts',
  'test/e2e/restart.test.ts',
  'test/e2e/strategies.test.ts',
  'test/e2e/udp.test.ts',
  'test/e2e/upgrade.test.ts',
];

const KERNEL = { testTimeout: patient(120_000), hookTimeout: patient(180_000) };

/** One group after the other; files of a group share its workers, each in a process of its own. */
export default defineConfig({
  test: {
    pool: 'forks',
    globalSetup: ['test/lab/global-setup.ts'],
    projects: [
      {
        extends: true,
        test: {
          name: 'unit',
          include: ['test/unit/**/*.test.ts'],
          testTimeout: 30_000,
          maxWorkers: 2,
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: {
          name: 'kernel',
          include: ['test/{bpf,lab,e2e}/**/*.test.ts', 'test/image/deploy.test.ts'],
          exclude: [...configDefaults.exclude, ...ALONE, ...missingParts().flatMap(({ files }) => files)],
          ...KERNEL,
          // At full size a file wants the machine for itself.
          maxWorkers: FULL_SIZE ? 1 : 2,
          sequence: { groupOrder: 1 },
        },
      },
      {
        extends: true,
        test: {
          name: 'alone',
          include: ALONE,
          ...KERNEL,
          maxWorkers: 1,
          sequence: { groupOrder: 2 },
        },
      },
      {
        extends: true,
        test: {
          name: 'long',
          include: ['test/image/image.test.ts', 'test/long/**/*.test.ts'],
          testTimeout: 120_000,
          // The image's base is fetched from the Debian mirror the first time, the release before this one compiled.
          hookTimeout: 900_000,
          maxWorkers: 1,
          sequence: { groupOrder: 3 },
        },
      },
    ],
  },
});
