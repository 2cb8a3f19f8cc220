/** Which view the address means. Addresses work when they are loaded anew, and with back and forward. */
import { computed, signal } from '@preact/signals';

const here = (): string => location.pathname + location.search;

const current = signal(here());
addEventListener('popstate', () => {
  current.value = here();
});

export const path = computed(() => current.value.split('?', 1)[0]!);
export const query = computed(() => new URLSearchParams(current.value.slice(path.value.length)));

export const navigate = (to: string): void => {
  if (to === here()) return;
  history.pushState(null, '', to);
  current.value = to;
};

/** As `navigate`, without a step in the history. */
export const replace = (to: string): void => {
  history.replaceState(null, '', to);
  current.value = to;
};

/** Changes what the address says of the view without a step in the history: filters, sorting. */
export const setQuery = (values: Readonly<Record<string, string>>): void => {
  const search = new URLSearchParams(query.value);
  for (const [name, value] of Object.entries(values))
    if (value === '') search.delete(name);
    else search.set(name, value);
  replace(search.size === 0 ? path.value : `${path.value}?${search}`);
};

/** Links of the page itself are followed without loading it anew; those with a modifier key, or of others, as ever. */
addEventListener('click', (event) => {
  const link = (event.target as Element).closest<HTMLAnchorElement>('a[href]');
  if (link === null || event.defaultPrevented || event.button !== 0) return;
  if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey || link.target !== '') return;
  if (link.origin !== location.origin || link.hash !== '' || link.dataset['outside'] !== undefined) return;
  event.preventDefault();
  navigate(link.pathname + link.search);
});

/** The values of `{name}` in a pattern; undefined: the address is not of it. */
export const match = (pattern: string, address: string): Readonly<Record<string, string>> | undefined => {
  const want = pattern.split('/');
  const have = address.split('/');
  if (want.length !== have.length) return undefined;
  const values: Record<string, string> = {};
  for (const [i, part] of want.entries()) {
    if (part.startsWith('{')) values[part.slice(1, -1)] = decoded(have[i]!);
    else if (part !== have[i]) return undefined;
  }
  return values;
};

const decoded = (text: string): string => {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
};
