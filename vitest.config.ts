import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    projects: [
      { test: { name: 'unit', include: ['test/unit/**/*.test.ts'], testTimeout: 30_000 } },
      {
        test: {
          name: 'kernel',
          include: ['test/bpf/**/*.test.ts', 'test/lab/**/*.test.ts', 'test/e2e/**/*.test.ts'],
          // Real runtimes and proxies on two cores: one file at a time.
          fileParallelism: false,
          testTimeout: 120_000,
          hookTimeout: 180_000,
        },
      },
      {
        test: {
          name: 'image',
          include: ['test/image/**/*.test.ts'],
          fileParallelism: false,
          testTimeout: 120_000,
          // Without a cache the image's base and its compilers are fetched from the Debian mirror.
          hookTimeout: 900_000,
        },
      },
    ],
  },
});
