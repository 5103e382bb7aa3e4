// Conversations in IndexedDB (or in memory, where the browser offers none), small settings in localStorage.
const kStore = 'conversations';

function openDatabase() {
  return new Promise((resolve) => {
    let request;
    try {
      request = indexedDB.open('reft', 1);
    } catch {
      resolve(null);
      return;
    }
    request.onupgradeneeded = () => request.result.createObjectStore(kStore, { keyPath: 'id' });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(null);
  });
}

const database = openDatabase();
const memory = new Map();

async function run(mode, action) {
  const db = await database;
  if (!db) return null;
  return new Promise((resolve, reject) => {
    const transaction = db.transaction(kStore, mode);
    const request = action(transaction.objectStore(kStore));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error);
  });
}

// Newest first.
export async function loadConversations() {
  const all = (await run('readonly', (store) => store.getAll())) ?? [...memory.values()];
  return all.sort((a, b) => b.updated - a.updated);
}
export async function saveConversation(conversation) {
  const copy = structuredClone(conversation);
  memory.set(copy.id, copy);
  await run('readwrite', (store) => store.put(copy));
}
export async function deleteConversation(id) {
  memory.delete(id);
  await run('readwrite', (store) => store.delete(id));
}

export function readSetting(name, fallback) {
  try {
    const text = localStorage.getItem(`reft.${name}`);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}
export function writeSetting(name, value) {
  try {
    localStorage.setItem(`reft.${name}`, JSON.stringify(value));
  } catch { /* storage is off or full: the setting lasts until the page closes */ }
}
