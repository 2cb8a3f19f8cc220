/** Who is signed in. */
import { computed, effect, signal } from '@preact/signals';
import { ApiError, call, type ResultOf, signInWith, whenSignedOut } from './api.ts';
import { startLive } from './live.ts';

export type Session = ResultOf<'getSession'>;

type State =
  | { readonly is: 'unknown' }
  | { readonly is: 'unreachable'; readonly why: string }
  | { readonly is: 'out'; readonly why?: string }
  | { readonly is: 'in'; readonly session: Session };

export const sessionState = signal<State>({ is: 'unknown' });

const rank = { viewer: 1, operator: 2, admin: 3 } as const;
const role = computed(() => (sessionState.value.is === 'in' ? sessionState.value.session.role : undefined));

/** Whether to offer what needs the role; the server decides. */
export const may = (needed: keyof typeof rank): boolean => role.value !== undefined && rank[role.value] >= rank[needed];

whenSignedOut(() => {
  if (sessionState.value.is === 'in') sessionState.value = { is: 'out', why: 'Your session has ended. Sign in again.' };
});

export const lookForSession = async (): Promise<void> => {
  try {
    sessionState.value = { is: 'in', session: await call('getSession') };
  } catch (error) {
    const isOut = error instanceof ApiError && error.status === 401;
    sessionState.value = isOut ? { is: 'out' } : { is: 'unreachable', why: (error as Error).message };
  }
};

/** ApiError. */
export const signIn = async (key: string): Promise<void> => {
  sessionState.value = { is: 'in', session: await signInWith(key) };
};

/** ApiError. */
export const signOut = async (): Promise<void> => {
  await call('endSession');
  sessionState.value = { is: 'out' };
};

const isIn = computed(() => sessionState.value.is === 'in');
effect(() => (isIn.value ? startLive() : undefined));
