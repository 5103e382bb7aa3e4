// Recordings for a speech model: from a file, or from the microphone.

// Two buttons and a file field. `host`: send(file), error(text).
export class SpeechInput {
  constructor({ upload, record, field }, host) {
    Object.assign(this, { upload, record, field, host });
    this.recorder = null;
    upload.addEventListener('click', () => field.click());
    field.addEventListener('change', () => {
      if (field.files[0]) this.host.send(field.files[0]);
      field.value = '';
    });
    record.addEventListener('click', () => (this.recorder ? this.recorder.stop() : this.start()));
  }

  show(visible) {
    this.upload.hidden = !visible;
    this.record.hidden = !visible || !navigator.mediaDevices?.getUserMedia;
    if (!visible) this.recorder?.stop();
  }

  async start() {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      this.host.error(`The microphone cannot be used: ${error.message}`);
      return;
    }
    const parts = [];
    this.recorder = new MediaRecorder(stream);
    this.recorder.addEventListener('dataavailable', (event) => parts.push(event.data));
    this.recorder.addEventListener('stop', () => {
      this.recorder = null;
      this.mark(false);
      for (const track of stream.getTracks()) track.stop();
      this.finish(new Blob(parts));
    });
    this.recorder.start();
    this.mark(true);
  }

  mark(on) {
    this.record.classList.toggle('recording', on);
    this.record.setAttribute('aria-pressed', String(on));
    this.record.title = on ? 'Stop and write it down' : 'Record with the microphone';
    this.record.setAttribute('aria-label', this.record.title);
  }

  async finish(blob) {
    try {
      const time = new Date().toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });
      this.host.send(new File([await toWav(blob)], `Recording ${time}.wav`, { type: 'audio/wav' }));
    } catch (error) {
      this.host.error(`The recording cannot be read: ${error.message}`);
    }
  }
}

// Whatever the browser records in becomes what every server reads: WAV, 16 bits, 16 kHz, one channel.
async function toWav(blob) {
  const rate = 16000;
  const context = new AudioContext();
  const sound = await context.decodeAudioData(await blob.arrayBuffer());
  context.close();
  const offline = new OfflineAudioContext(1, Math.ceil(sound.duration * rate), rate);
  const source = offline.createBufferSource();
  source.buffer = sound;
  source.connect(offline.destination);
  source.start();
  const samples = (await offline.startRendering()).getChannelData(0);
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, 'RIFF');
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, 'WAVEfmt ');
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, 'data');
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, x)) * 32767, true));
  return view.buffer;
}
