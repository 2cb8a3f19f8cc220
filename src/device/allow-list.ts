/** Who may connect by TCP: this machine itself, and what was allowed. */
import { BlockList, isIPv6 } from 'node:net';

const familyOf = (address: string): 'ipv4' | 'ipv6' => (isIPv6(address) ? 'ipv6' : 'ipv4');

export class AllowList {
  readonly #list = new BlockList();

  /** Addresses and prefixes (`192.0.2.7`, `2001:db8::/32`), which were checked. */
  constructor(allow: readonly string[]) {
    this.#list.addSubnet('127.0.0.0', 8, 'ipv4');
    this.#list.addAddress('::1', 'ipv6');
    for (const each of allow) {
      const [address = '', bits] = each.split('/');
      if (bits === undefined) this.#list.addAddress(address, familyOf(address));
      else this.#list.addSubnet(address, Number(bits), familyOf(address));
    }
  }

  allows(address: string): boolean {
    return this.#list.check(address, familyOf(address));
  }
}
