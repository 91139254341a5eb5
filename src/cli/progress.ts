/** How far something has come: a bar on a terminal, a line for each change elsewhere. */

import { SingleBar } from 'cli-progress';
import type { Print } from './output.js';

export interface Progress {
  /** `text`: what there is to say of it, for who sees no bar. */
  reached(done: number, total: number, text: string): void;
  end(): void;
}

/** `terminal`: where the bar is drawn; undefined: nobody sees one. */
export function progress(terminal: NodeJS.WriteStream | undefined, print: Print): Progress {
  return terminal === undefined ? new Lines(print) : new Bar(terminal);
}

class Lines implements Progress {
  readonly #print: Print;
  #last: string | undefined;

  constructor(print: Print) {
    this.#print = print;
  }

  reached(_done: number, _total: number, text: string): void {
    if (text !== this.#last) {
      this.#print(text);
    }
    this.#last = text;
  }

  end(): void {
    this.#last = undefined;
  }
}

class Bar implements Progress {
  readonly #bar: SingleBar;
  #started = false;

  constructor(stream: NodeJS.WriteStream) {
    this.#bar = new SingleBar({
      stream,
      format: '{bar} {value}/{total} {text}',
      barCompleteChar: '#',
      barIncompleteChar: '.',
      hideCursor: true,
    });
  }

  reached(done: number, total: number, text: string): void {
    if (!this.#started) {
      this.#started = true;
      this.#bar.start(total, done, { text });
    }
    this.#bar.setTotal(total);
    this.#bar.update(done, { text });
  }

  end(): void {
    if (this.#started) {
      this.#bar.stop();
    }
  }
}
