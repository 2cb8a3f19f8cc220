/** Light and dark: as the system says, unless the person said otherwise. */
import { effect, signal } from '@preact/signals';

export const themes = ['system', 'light', 'dark'] as const;
export type Theme = (typeof themes)[number];

const kept = localStorage.getItem('theme');
export const theme = signal<Theme>(themes.find((one) => one === kept) ?? 'system');

effect(() => {
  if (theme.value === 'system') {
    localStorage.removeItem('theme');
    delete document.documentElement.dataset['theme'];
  } else {
    localStorage.setItem('theme', theme.value);
    document.documentElement.dataset['theme'] = theme.value;
  }
});
